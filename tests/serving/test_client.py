import asyncio
import email.utils
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import astropy.units as u
import httpx
import numpy as np
import pytest
import torch
import uvicorn
from both_clients import KINDS, open_client
from fake_model import FakeModel, images, spectra
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from flaky_app import FlakyApp

import armillary
from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import write_dataset
from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation, ObservationError, ScalarObservation, SpectrumObservation
from armillary.models.foundation import FoundationModel
from armillary.serving.app import create_app
from armillary.serving.client.async_client import AsyncClient
from armillary.serving.client.batches import Batch, batches, objects_of
from armillary.serving.client.client import (
    ApiError,
    BusyError,
    Client,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    TooLargeError,
    UnauthorizedError,
    UnreachableError,
)
from armillary.serving.client.requests import RetryRules, retry_after
from armillary.serving.limits import Limits


@pytest.fixture(scope="module")
def served(index):
    from live_server import running

    with running(create_app(FakeModel(), index, api_key="secret")) as url:
        yield url


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def client(kind, served):
    with open_client(kind, served, "secret") as client:
        yield client


def masked_images():
    given = images(3, bands=("g", "r", "i"))
    mask = torch.ones(given.flux.shape, dtype=torch.bool)
    mask[1, 0, 2:5] = False
    flux = torch.where(mask, given.flux, torch.nan)
    return ImageObservation(
        given.modality,
        given.object_id,
        flux,
        given.bands,
        mask=mask,
        psf_fwhm=torch.full((3, 3), 0.61),
        center=[[3, 4]] * 3,
    )


def with_bright(given, rows):
    """Spectra of which the model refuses these rows."""
    is_bright = torch.tensor([row in rows for row in range(len(given))])[:, None]
    flux = torch.where(is_bright, 1e7, given.flux)
    return SpectrumObservation(given.modality, given.object_id, flux, given.wavelength, given.inverse_variance)


def test_remote_embeddings_equal_local_ones(client):
    scalars = ScalarObservation(
        modality("scalar/redshift"), ["object-1", "lonely"], [0.2, 0.4], error=[0.01, float("nan")]
    )
    given = [masked_images(), spectra(5), scalars]
    cases = (("encoder", given), ("encoder", [scalars]), ("aligned", given[:2]), ("aligned", given[:1]))
    for space, observations in cases:
        local, remote = FakeModel().embed(observations, space), client.embed(observations, space)
        assert remote.object_id == local.object_id
        assert remote.modalities == local.modalities
        assert (remote.space, remote.model_id) == (space, local.model_id)
        assert remote.vectors.dtype == torch.float32
        torch.testing.assert_close(remote.vectors, local.vectors, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("together", [True, False])
def test_what_arrives_is_what_was_sent(index, run, kind, together):
    """Both as tensors (one modality) and as JSON (several of an object)."""
    seen = []

    class Watching(FakeModel):
        def embed(self, observations, space="aligned"):
            seen.extend(observations)
            return super().embed(observations, space)

    wavelengths = np.stack([np.linspace(4000, 9000, 30), np.linspace(4001, 9003, 30)])
    mask = np.ones((2, 30), bool)
    mask[1, 20:] = False
    wavelengths[1, 20:] = 0
    spectrum = SpectrumObservation(
        modality("spectrum/desi"),
        ["a", "b"],
        np.random.default_rng(0).normal(size=(2, 30)),
        wavelengths,
        np.full((2, 30), 2.5),
        mask,
        ra=[1.25, float("nan")],
        dec=[-3.5, float("nan")],
    )
    sent = [masked_images(), spectrum]
    with run(create_app(Watching(), index)) as url, open_client(kind, url) as client:
        for part in [sent] if together else [[one] for one in sent]:
            client.embed(part)
    for given, arrived in zip(sent, seen, strict=True):
        for name in ("flux", "inverse_variance", "mask", "ra", "dec", "psf_fwhm", "center", "depth", "resolving_power"):
            if hasattr(given, name):
                torch.testing.assert_close(getattr(arrived, name), getattr(given, name), equal_nan=True, rtol=0, atol=0)
    np.testing.assert_array_equal(seen[1].wavelength.numpy()[mask], wavelengths[mask])
    assert seen[1].wavelength.dtype == torch.float64


@pytest.mark.parametrize("limits", [Limits(max_items=3), Limits(max_body_bytes=8000)])
def test_batches_are_split_by_the_servers_limits(index, run, kind, limits):
    app = FlakyApp(create_app(FakeModel(), index, limits=limits), [], only="/v1/embeddings")
    with run(app) as url, open_client(kind, url) as client:
        found = client.embed([images(10)])
        assert found.object_id == tuple(f"object-{i}" for i in range(10))
        torch.testing.assert_close(found.vectors, FakeModel().embed([images(10)]).vectors, atol=1e-6, rtol=0)
    assert 4 <= len(app.requests) <= 10


def test_an_object_that_no_request_can_hold_is_said_before_it_is_sent(index, run, kind):
    app = FlakyApp(create_app(FakeModel(), index, limits=Limits(max_body_bytes=2000)), [], only="/v1/embeddings")
    with run(app) as url, open_client(kind, url) as client:
        with pytest.raises(TooLargeError, match=r"'object-0': .* takes at most 2000"):
            client.embed(images(2, side=32))
        found = client.embed_many([images(1), images(1, side=32), images(1, seed=5)], on_error="skip").collect()
    assert len(found) == 2
    assert [(one.index, type(one.error)) for one in found.errors] == [(1, TooLargeError)]
    assert len(app.requests) <= 2


def test_arrays_files_and_astropy_are_embedded_as_observations_are(client, tmp_path):
    cube = images(1)
    np.save(tmp_path / "image.npy", cube.flux[0].numpy())
    local = FakeModel().embed([cube])
    read = armillary.observe(tmp_path / "image.npy", "image/hsc", bands="gr")
    quantity = armillary.observe(cube.flux[0].numpy() * 3.631 * u.uJy, "image/hsc", bands="gr")
    for given in (cube, read, quantity, {"image/hsc": cube}):
        torch.testing.assert_close(client.embed(given).vectors, local.vectors, atol=1e-5, rtol=1e-5)
    several = client.embed({"image/hsc": read, "scalar/redshift": 0.3}, "encoder")
    assert several.modalities == (("image/hsc", "scalar/redshift"),)
    table = client.embed([images(3)]).table()
    assert list(table["object_id"]) == ["object-0", "object-1", "object-2"]
    np.testing.assert_array_equal(table["embedding"], client.embed([images(3)]).numpy())


def test_neighbours_of_one_survey_and_a_range_that_the_index_does_not_have(client):
    found = client.neighbours("object-3", 5, survey="desi")
    assert {neighbour.modality for neighbour in found} == {"spectrum/desi"}
    with pytest.raises(NotFoundError, match="scalar/depth"):
        client.neighbours("object-3", 5, where={"scalar/depth": (None, 3.0)})


def test_neighbours_by_id_vector_and_measurement_agree(client, index):
    vector = index.vector("object-30", "image/hsc")
    expected = index.search(vector[None], 6, target_modality="image/hsc").object_id[0].tolist()
    options = {"target_modality": "image/hsc", "exclude_self": False}
    by_id = client.neighbours("object-30", 6, modality="image/hsc", **options)
    assert [n.object_id for n in by_id] == expected
    image = images(120).select([30])
    for query in (vector, torch.from_numpy(vector), image, [image], {"image/hsc": image}):
        assert client.neighbours(query, 6, **options)[0].object_id == "object-30"
    assert "object-30" not in client.neighbours("object-30", 6).object_id


def test_neighbours_are_a_sequence_and_a_table(client, index):
    vector = index.vector("object-30", "image/hsc")
    near = client.neighbours(vector, 6, cone=(13.0 * u.deg, 5.0, 9 * u.arcmin), with_labels=True)
    assert set(near.object_id) <= {"object-29", "object-30", "object-31"}
    assert near[0].labels["scalar/redshift"] == pytest.approx(30 / 119)
    assert (near.labels("scalar/redshift")[0], len(near[1:]), near[-1]) == (
        near[0].labels["scalar/redshift"],
        len(near) - 1,
        list(near)[-1],
    )
    assert (np.diff(near.similarity) <= 0).all()
    table = near.table()
    assert list(table["object_id"]) == list(near.object_id)
    np.testing.assert_allclose(table["ra"].to_value(u.arcmin), [n.ra * 60 for n in near])
    np.testing.assert_array_equal(table["scalar/redshift"], near.labels("scalar/redshift"))
    assert table.meta["model_id"] == FakeModel.model_id
    with pytest.raises(ValueError, match="with_labels=True"):
        client.neighbours(vector, 2).labels("scalar/redshift")


def test_examples_are_whatever_a_query_may_be(client, index):
    vector = index.vector("object-30", "image/hsc")
    image = images(120).select([30])
    itself = client.neighbours(vector, 1, target_modality="image/hsc")[0]
    options = {"k": 5, "exclude_self": False, "target_modality": "image/hsc"}
    wanted = client.neighbours(vector, **options).object_id
    for example in (itself, vector, torch.from_numpy(vector), image):
        assert client.neighbours(positive=[example], **options).object_id == wanted
    unlike = client.neighbours(positive=["object-30"], negative=["object-90", image], negative_weight=0.5, k=200)
    assert not {"object-30", "object-90"} & set(unlike.object_id)
    with pytest.raises(NotFoundError, match="/negative/0"):
        client.neighbours(positive=["object-30"], negative=["object-x"])


def test_pages_of_neighbours_are_one_search(client):
    options = {"target_modality": "spectrum/desi", "with_labels": True, "exact": True}
    pages = list(client.neighbour_pages("object-30", 25, **options))
    assert [len(page) for page in pages] == [25, 25, 9]  # 60 spectra, and its own
    assert [one for page in pages for one in page] == client.neighbours("object-30", 60, **options)
    first = client.neighbours("object-30", 25, **options)
    assert client.neighbours("object-30", 25, cursor=first.next_cursor, **options) == pages[1]
    with pytest.raises(InvalidRequestError, match="another request"):
        client.neighbours("object-31", 25, cursor=first.next_cursor, **options)


def test_prediction_comes_with_intervals_and_neighbours(client):
    found = client.predict("scalar/redshift", images(120).select([30]), k=5, target_modality="image/hsc")
    assert found.value == pytest.approx(30 / 119, abs=0.05)
    assert [interval.level for interval in found.intervals] == [0.68, 0.9, 0.95]
    assert sum(n.weight * n.label for n in found.neighbours) == pytest.approx(found.value)
    assert found.provenance["model_id"] == FakeModel.model_id
    assert found.interval(0.9) == found.intervals[1]
    with pytest.raises(LookupError, match=r"no interval of level 0.5; there are \[0.68"):
        found.interval(0.5)
    table = found.table()
    assert table["value"][0] == found.value
    assert table["upper_90"][0] == found.intervals[1].upper
    np.testing.assert_array_equal(found.neighbours.table()["label"], [n.label for n in found.neighbours])


def test_a_scalar_is_predicted_for_many_objects_as_by_the_local_model(client):
    given = images(3)
    found = client.predict_scalar([given], "scalar/redshift")
    assert found.object_id == given.object_id
    for row in range(3):
        local = FakeModel().predict_scalar([given.select([row])], "scalar/redshift")
        torch.testing.assert_close(found.probabilities[row], local.probabilities[0], atol=1e-6, rtol=1e-6)
        assert float(found.median()[row]) == pytest.approx(float(local.median()[0]), abs=1e-5)
    with pytest.raises(ObservationError, match="other than scalar/redshift"):
        client.predict_scalar({"scalar/redshift": 0.1}, "scalar/redshift")


def test_the_server_is_described(client):
    assert client.models()[0]["id"] == FakeModel.model_id == client.model_id
    assert "image/hsc" in [entry["name"] for entry in client.modalities()]
    assert client.object("object-5").modalities == ("image/hsc", "spectrum/desi")
    assert client.collections()[0]["num_objects"] == 120
    assert client.limits()["max_items"] == 256
    assert client.embedding_size("encoder") == FakeModel().embedding_size("encoder")
    with pytest.raises(ObservationError, match="no space 'pixels'"):
        client.embedding_size("pixels")


def test_problems_are_raised_with_their_document(client, kind, served):
    with pytest.raises(NotFoundError, match="nearest known is 'object-119'") as caught:
        client.object("object-1199")
    assert caught.value.status == 404
    assert caught.value.problem["type"] == "/problems/not-found"
    with pytest.raises(NotFoundError, match="no property"):
        client.predict("scalar/mass", "object-1")
    with pytest.raises(InvalidRequestError, match="k"):
        client.neighbours("object-1", 0)
    with open_client(kind, served, "wrong") as stranger, pytest.raises(UnauthorizedError) as caught:
        stranger.models()
    assert isinstance(caught.value, ApiError)


def test_one_object_that_the_model_refuses_is_an_error_that_names_it(client):
    with pytest.raises(InvalidRequestError, match=r"'object-1' .*too bright") as caught:
        client.embed([with_bright(spectra(3), {1})])
    assert caught.value.problem["errors"][0]["pointer"] == "/input/1"
    with pytest.raises(InvalidRequestError, match="too bright") as caught:
        client.embed([with_bright(spectra(6), {5})], batch_size=2)
    assert caught.value.problem["errors"][0]["pointer"] == "/input/5"
    assert caught.value.finished.object_id == tuple(f"object-{i}" for i in range(4))


def test_a_query_of_several_objects_is_an_error_before_anything_is_sent(client):
    with pytest.raises(ValueError, match="these observations hold 4"):
        client.neighbours(images(4))


def test_a_server_that_is_not_ours_is_an_api_error_too(run, kind):
    app = FastAPI()

    @app.get("/v1/models")
    def models():
        return HTMLResponse("<p>Welcome</p>")

    with run(app) as url, open_client(kind, url) as client:
        with pytest.raises(NotFoundError, match="404"):
            client.collections()
        with pytest.raises(ApiError, match=r"answers text/html.*, not JSON"):
            client.models()
    with pytest.raises(ValueError, match="begins with http://"):
        open_client(kind, "localhost:8000")


# Many objects


def test_a_stream_gives_all_objects_in_order_however_they_come(client, tmp_path):
    given = images(40)
    expected = FakeModel().embed([given]).vectors
    singles = [given.select([row]) for row in range(40)]
    np.save(tmp_path / "one.npy", given.flux[7].numpy())
    for source in (given, singles, (one for one in singles), [given.select(slice(0, 25)), given.select(slice(25, 40))]):
        parts = list(client.embed_many(source, batch_size=7))
        assert [len(part) for part in parts] == [7, 7, 7, 7, 7, 5]
        assert sum((part.object_id for part in parts), ()) == given.object_id
        torch.testing.assert_close(torch.cat([part.vectors for part in parts]), expected, atol=1e-6, rtol=0)
    read = client.embed_many([lambda: armillary.observe(tmp_path / "one.npy", "image/hsc", bands="gr")] * 2).collect()
    torch.testing.assert_close(read.embeddings.vectors, expected[[7, 7]], atol=1e-6, rtol=0)
    numbered = client.embed_many([{"scalar/redshift": 0.1}, {"scalar/redshift": [0.2, 0.3]}], "encoder").collect()
    assert numbered.embeddings.object_id == ("0", "1", "2")
    name, vector = numbered[1]
    assert name == "1"
    np.testing.assert_array_equal(vector, numbered.embeddings.vectors[1].numpy())


def test_mixed_shapes_and_modalities_keep_their_order(client):
    given = [images(2), spectra(3), images(2, side=12, prefix="large-"), [images(1), spectra(1)]]
    found = client.embed_many(given).collect().require_all()
    expected = [FakeModel().embed(one if isinstance(one, list) else [one]).vectors for one in given]
    torch.testing.assert_close(found.vectors, torch.cat(expected), atol=1e-6, rtol=1e-6)


def test_a_dataset_is_embedded_by_modality(client, tmp_path):
    write_dataset(tmp_path / "sky", [images(30), spectra(10)])
    dataset = ObservationDataset(tmp_path / "sky")
    found = client.embed_many(dataset, modality="image/hsc", batch_size=16).collect()
    assert found.embeddings.object_id == tuple(dataset.object_ids("image/hsc"))
    several = client.embed_many(str(tmp_path / "sky"), modality=["image/hsc", "spectrum/desi"]).collect()
    both = [i for i, m in zip(several.embeddings.object_id, several.embeddings.modalities, strict=True) if len(m) == 2]
    assert sorted(both) == sorted(dataset.object_ids("spectrum/desi"))
    assert len(several) == 30
    with pytest.raises(ObservationError, match=r"say which modality .*\['image/hsc', 'spectrum/desi'\]"):
        client.embed_many(dataset)
    with pytest.raises(ObservationError, match="no modality 'image/sdss'"):
        client.embed_many(dataset, modality="image/sdss")


def test_bad_objects_do_not_lose_the_others(client, tmp_path):
    (tmp_path / "torn.fits").write_bytes(b"SIMPLE  =")
    good = spectra(4)
    source = [
        good,
        {"image/hsc": tmp_path / "torn.fits"},
        with_bright(spectra(3, prefix="b-"), {1}),
        with_bright(spectra(2, prefix="c-"), {0, 1}),
        spectra(1, prefix="last-"),
    ]
    stream = client.embed_many(source, batch_size=3, on_error="skip")
    found = stream.collect()
    expected = (*good.object_id, "b-0", "b-2", "last-0")
    assert found.embeddings.object_id == expected
    torch.testing.assert_close(found.embeddings.vectors[:4], FakeModel().embed([good]).vectors, atol=1e-6, rtol=0)
    assert [(one.index, one.object_id) for one in found.errors] == [
        (4, "item 4"),
        (6, "b-1"),
        (8, "c-0"),
        (9, "c-1"),
    ]
    assert isinstance(found.errors[0].error, ObservationError)
    assert "torn.fits" in str(found.errors[0].error)
    assert all("too bright" in str(one.error) for one in found.errors[1:])
    assert found.errors[-1].error.problem["errors"][0]["pointer"] == "/input/9"
    assert stream.num_done == 11
    with pytest.raises(ObservationError, match="torn"):
        found.require_all()
    with pytest.raises(ObservationError, match="torn"):
        client.embed_many(source, batch_size=3).collect()


def test_what_is_wrong_with_the_request_itself_is_never_skipped(run, kind):
    with run(create_app(FakeModel(), limits=Limits())) as url, open_client(kind, url) as client:
        unknown = armillary.observe(np.ones((1, 4, 4)), "image/hsc", bands="g")
        with pytest.raises(InvalidRequestError, match="space"):
            client.embed_many([unknown], "pixels", on_error="skip").collect()


def test_an_iterable_is_read_only_as_far_as_requests_leave(client):
    pulled = []

    def endless():
        for number in range(10**9):
            pulled.append(number)
            yield images(1, seed=number, prefix=f"{number}-")

    stream = client.embed_many(endless(), batch_size=4, num_in_flight=3)
    for count in range(1, 6):
        next(stream)
        # Those given, three requests under way, one being gathered, and the item that closed a batch.
        assert len(pulled) <= 4 * (count + 3 + 1) + 1
    stream.close()
    reached = len(pulled)
    time.sleep(0.2)
    assert len(pulled) <= reached + 5


def test_what_the_iterable_raises_comes_after_the_parts_before_it(client):
    def broken():
        yield images(4)
        yield images(4, prefix="second-")
        raise RuntimeError("the disk is gone")

    stream = client.embed_many(broken(), batch_size=4)
    assert [next(stream).object_id[0], next(stream).object_id[0]] == ["object-0", "second-0"]
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(stream)
    collecting = client.embed_many(broken(), batch_size=4)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        collecting.collect()
    assert (len(collecting.finished), collecting.num_done) == (8, 8)


def test_several_requests_are_under_way_at_once(run, kind):
    met = threading.Barrier(3, timeout=20)
    app = create_app(FakeModel())
    outer = FastAPI()

    @outer.middleware("http")
    async def wait_for_others(request, call_next):
        if request.url.path == "/v1/embeddings":
            # Three requests must be here before one goes on.
            await asyncio.to_thread(met.wait)
        return await call_next(request)

    outer.mount("/", app)
    with run(outer) as url, open_client(kind, url, num_in_flight=3) as client:
        assert len(client.embed(images(6), batch_size=2)) == 6


def test_the_bar_counts_to_the_end(client, capsys):
    client.embed_many(images(9), batch_size=3, progress=True).collect()
    assert "9/9" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["async"])
def test_a_model_that_changes_meanwhile_is_an_error(run, kind):
    class Changing(FakeModel):
        def embed(self, observations, space="aligned"):
            found = super().embed(observations, space)
            self.model_id = f"armillary-{self.num_calls:012d}"
            return found

    with run(create_app(Changing())) as url, open_client(kind, url, num_in_flight=1) as client:  # noqa: SIM117
        with pytest.raises(ConflictError, match="changed its model"):
            client.embed_many(images(8), batch_size=4).collect()


# Servers that fail


FAST = {"deadline": 20, "retries": 3}


@pytest.mark.parametrize("failures", [["429"], ["cut", "503"]])
def test_passing_failures_are_not_seen(index, run, kind, failures):
    app = FlakyApp(create_app(FakeModel(), index), failures, only="/v1/")
    with run(app) as url, open_client(kind, url, **FAST) as client:
        assert client.limits()["max_items"] == 256
        app.failures = list(failures)
        torch.testing.assert_close(
            client.embed(images(2)).vectors, FakeModel().embed([images(2)]).vectors, atol=1e-6, rtol=0
        )
        app.failures = list(failures)
        assert client.neighbours("object-3", 2)[0].object_id != "object-3"
    assert not app.failures


@pytest.mark.parametrize("kind", ["async"])
def test_the_server_says_how_long_to_wait(index, run, kind):
    app = FlakyApp(create_app(FakeModel(), index), ["429"], retry_after="1")
    with run(app) as url, open_client(kind, url, **FAST) as client:
        start = time.monotonic()
        client.models()
        # A lower bound of time is no matter of a machine's speed.
        assert time.monotonic() - start >= 1


@pytest.mark.parametrize("wait", [None, "3600"])
def test_a_server_that_stays_busy_is_an_error_by_the_deadline(index, run, kind, wait):
    app = FlakyApp(create_app(FakeModel(), index), ["503"] * 100, retry_after=wait)
    with run(app) as url, open_client(kind, url, deadline=1.5) as client:  # noqa: SIM117
        with pytest.raises(BusyError, match=r"the test says so \(request req-1\)") as caught:
            client.models()
    assert (caught.value.status, caught.value.request_id) == (503, "req-1")
    assert (len(app.requests) > 1) == (wait is None)


def test_errors_that_would_come_again_are_not_asked_for_again(index, run, kind):
    app = FlakyApp(create_app(FakeModel(), index), [])
    with run(app) as url, open_client(kind, url) as client, pytest.raises(NotFoundError):
        client.object("nobody")
    assert len(app.requests) == 1


@pytest.mark.parametrize("kind", ["async"])
def test_a_server_that_does_not_answer_is_an_error_by_the_deadline(run, kind):
    app = FastAPI()

    @app.get("/v1/models")
    async def models():
        await asyncio.sleep(1)

    with run(app) as url:
        with open_client(kind, url, deadline=0.4) as client:  # noqa: SIM117
            with pytest.raises(UnreachableError, match=r"/v1/models: no answer within 0.4 s"):
                client.models()
        with open_client(kind, url, timeout=0.2, retries=1) as client:  # noqa: SIM117
            with pytest.raises(UnreachableError, match=r"2 times; is the server up\?"):
                client.models()


def test_no_server_at_all_is_said_soon(kind):
    with open_client(kind, "http://127.0.0.1:9", retries=100) as client:  # noqa: SIM117
        with pytest.raises(UnreachableError, match="is the server up"):
            client.models()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync"])
def test_a_server_killed_midway_leaves_what_was_finished(tmp_path, kind):
    ready = tmp_path / "ready.json"
    command = [sys.executable, str(Path(__file__).parent / "doomed_server.py"), str(ready), "0.05"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not ready.is_file():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        url = json.loads(ready.read_text())["url"]
        given = images(400)

        def source():
            for row in range(400):
                if row == 100:
                    os.kill(process.pid, signal.SIGKILL)
                yield given.select([row])

        with open_client(kind, url, retries=1) as client:
            stream = client.embed_many(source(), batch_size=10, num_in_flight=2)
            with pytest.raises(UnreachableError, match="is the server up") as caught:
                stream.collect()
        finished = caught.value.finished
        assert 60 <= len(finished) <= 100
        assert stream.num_done == len(finished)
        assert finished.object_id == given.object_id[: len(finished)]
        expected = FakeModel().embed([given]).vectors[: len(finished)]
        torch.testing.assert_close(finished.vectors, expected, atol=1e-6, rtol=0)
        assert any("100" in note or "objects were done" in note for note in caught.value.__notes__)
    finally:
        process.kill()
        process.wait()


def test_waits_grow_with_jitter_and_never_undercut_the_server():
    rules = RetryRules(first_wait=1.0, longest_wait=8.0)
    waits = np.array([[rules.wait(attempt) for attempt in range(6)] for _ in range(400)])
    assert (waits.max(0) <= [1, 2, 4, 8, 8, 8]).all()
    np.testing.assert_allclose(waits.mean(0), [0.5, 1, 2, 4, 4, 4], rtol=0.2)
    assert min(rules.wait(0, 5.0) for _ in range(50)) >= 5
    with pytest.raises(ValueError, match="deadline must be positive"):
        RetryRules(deadline=0.0)


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7), ("0", 0), ("-3", 0), ("soon", None), ("", None), ("nan", None), ("date", 100)]
)
def test_retry_after_is_a_number_or_a_date(header, seconds):
    given = email.utils.formatdate(time.time() + 100, usegmt=True) if header == "date" else header
    found = retry_after(httpx.Response(429, headers={"Retry-After": given}))
    assert found == (None if seconds is None else pytest.approx(seconds, abs=2))


@pytest.mark.parametrize("kind", ["sync"])
def test_batches_too_large_for_a_proxy_go_in_halves(run, kind):
    app = create_app(FakeModel())

    async def proxy(scope, receive, send):
        if scope["type"] == "http" and int(dict(scope["headers"]).get(b"content-length", 0)) > 6000:
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"text/html")]})
            await send({"type": "http.response.body", "body": b"<h1>413</h1>"})
            return
        await app(scope, receive, send)

    given = [images(9), with_bright(spectra(2), {1}), images(1, side=40, prefix="large-")]
    with run(proxy) as url, open_client(kind, url) as client:
        found = client.embed_many(given, batch_size=6, on_error="skip").collect()
    expected = torch.cat([FakeModel().embed([images(9)]).vectors, FakeModel().embed([spectra(1)]).vectors])
    torch.testing.assert_close(found.embeddings.vectors, expected, atol=1e-6, rtol=1e-6)
    assert [(one.index, type(one.error)) for one in found.errors] == [(10, InvalidRequestError), (11, TooLargeError)]


@pytest.mark.parametrize("kind", ["sync"])
@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_of_ones_own_is_trusted_where_it_is_given(kind, tmp_path):
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    extension = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run([*command, *extension], check=True, capture_output=True)
    config = uvicorn.Config(
        create_app(FakeModel()), port=0, log_level="critical", ssl_keyfile=key, ssl_certfile=certificate
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"https://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    with open_client(kind, url, certificates=certificate) as client:
        assert client.model_id == FakeModel.model_id
    with (
        open_client(kind, url, retries=0) as client,
        pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.models()
    server.should_exit = True
    thread.join(10)


# One code for both


def test_methods_of_the_client_are_those_of_the_local_model():
    for name in ("embed", "predict_scalar", "embedding_size"):
        local = inspect.signature(getattr(FoundationModel, name)).parameters
        for of in (Client, AsyncClient):
            remote = inspect.signature(getattr(of, name)).parameters
            assert [(p.name, p.kind, p.default) for p in remote.values()] == [
                (p.name, p.kind, p.default) for p in local.values()
            ]


def test_generation_takes_what_the_local_model_takes_but_what_http_lacks():
    local = inspect.signature(FoundationModel.generate).parameters
    for of in (Client, AsyncClient):
        remote = inspect.signature(of.generate).parameters
        assert local.keys() - remote.keys() == {"guidance", "batch_size"}
        assert all((p.kind, p.default) == (local[name].kind, local[name].default) for name, p in remote.items())


def test_noise_that_the_depth_tells_is_not_sent():
    plain = images(6, side=32)
    measured = ImageObservation(plain.modality, plain.object_id, plain.flux, plain.bands, 2 * plain.inverse_variance)
    bodies = [Batch(0, tuple(objects_of([one]))).body("aligned", 10**9)[0] for one in (plain, measured)]
    assert len(bodies[0]) < 0.6 * len(bodies[1])


def test_both_clients_have_the_same_methods():
    def methods(of):
        return {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]
            for name, method in vars(of).items()
            if inspect.isfunction(method) and not name.startswith("_")
        }

    sync, waiting = methods(Client), methods(AsyncClient)
    assert waiting.keys() - sync.keys() == {"aclose", "send", "model_id"}
    assert sync.keys() - waiting.keys() == {"close"}
    for name in sync.keys() & waiting.keys():
        assert sync[name] == waiting[name]


def test_threads_share_a_client(served):
    with Client(served, "secret") as client:
        found = {}

        def ask(number):
            found[number] = client.embed(images(2, seed=number)).vectors

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number in range(6):
        torch.testing.assert_close(
            found[number], FakeModel().embed([images(2, seed=number)]).vectors, atol=1e-6, rtol=0
        )
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.models()


def test_an_interrupted_call_ends_and_the_client_goes_on(run):
    app = FastAPI()

    @app.get("/v1/models")
    async def models():
        await asyncio.sleep(1)

    @app.get("/v1/collections")
    async def collections():
        return {"collections": []}

    with run(app) as url, Client(url) as client:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            client.models()
        assert client.collections() == []


def test_a_client_works_on_after_a_fork(served):
    with Client(served, "secret") as client:
        client.models()
        child = os.fork()
        if child == 0:
            # Nothing of the test session may go on in the child.
            os._exit(0 if client.model_id == FakeModel.model_id else 1)
        end = time.monotonic() + 20
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.02)
        assert os.waitstatus_to_exitcode(ended[1]) == 0
        assert client.model_id == FakeModel.model_id


def test_a_client_inside_a_running_event_loop_works(served):
    async def in_notebook():
        with Client(served, "secret") as client:
            return client.models()

    assert asyncio.run(in_notebook())[0]["id"] == FakeModel.model_id


def test_a_client_left_open_leaves_no_thread_behind(served):
    before = threading.active_count()
    with Client(served, "secret") as client:
        stream = client.embed_many((images(1, seed=n) for n in range(10**6)), batch_size=2)
        next(stream)
    assert threading.active_count() <= before + 1


def test_batches_hold_each_object_once_and_never_too_much():
    given = [images(5), spectra(7), images(3, side=20, prefix="x-")]
    found = list(batches(given, lambda item, first: [item], 4, 12_000))
    assert [one.object_id for batch in found for one in batch.objects] == [
        name for observation in given for name in observation.object_id
    ]
    assert [batch.first for batch in found] == np.cumsum([0, *(len(batch.objects) for batch in found)])[:-1].tolist()
    for batch in found:
        assert len(batch.objects) <= 4
        body, _ = batch.body("aligned", 10**9)
        assert len(batch.objects) == 1 or len(body) <= 12_000
