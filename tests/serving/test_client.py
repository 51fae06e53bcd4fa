import numpy as np
import pytest
import torch
from fake_model import FakeModel, images, spectra

from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation, ScalarObservation, SpectrumObservation
from armillary.serving.app import create_app
from armillary.serving.client import ApiError, Client
from armillary.serving.limits import Limits


@pytest.fixture(scope="module")
def served(index):
    from conftest import running

    model = FakeModel()
    with running(create_app(model, index, api_key="secret")) as url, Client(url, api_key="secret") as client:
        yield client, model


@pytest.fixture
def client(served):
    return served[0]


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


def test_remote_embeddings_equal_local_ones(client):
    scalars = ScalarObservation(
        modality("scalar/redshift"), ["object-1", "lonely"], [0.2, 0.4], error=[0.01, float("nan")]
    )
    given = [masked_images(), spectra(5), scalars]
    for space, observations in (("encoder", given), ("aligned", given[:2])):
        local, remote = FakeModel().embed(observations, space), client.embed(observations, space)
        assert remote.object_id == local.object_id
        assert remote.modalities == local.modalities
        assert (remote.space, remote.model_id) == (space, local.model_id)
        assert remote.vectors.dtype == torch.float32
        torch.testing.assert_close(remote.vectors, local.vectors, atol=1e-6, rtol=1e-6)


def test_what_arrives_is_what_was_sent(index, run):
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
    with run(create_app(Watching(), index)) as url, Client(url) as client:
        client.embed(sent)
    for given, arrived in zip(sent, seen, strict=True):
        for name in ("flux", "inverse_variance", "mask", "ra", "dec", "psf_fwhm", "center", "depth", "resolving_power"):
            if hasattr(given, name):
                torch.testing.assert_close(getattr(arrived, name), getattr(given, name), equal_nan=True, rtol=0, atol=0)
    np.testing.assert_array_equal(seen[1].wavelength.numpy()[mask], wavelengths[mask])
    assert seen[1].wavelength.dtype == torch.float64


def test_one_object_alone_works(client):
    one = images(1)
    torch.testing.assert_close(client.embed([one]).vectors, FakeModel().embed([one]).vectors, atol=1e-6, rtol=0)


@pytest.mark.parametrize("limits", [Limits(max_items=3), Limits(max_body_bytes=8000)])
def test_batches_are_split_by_the_servers_limits(index, run, limits):
    model = FakeModel()
    with run(create_app(model, index, limits=limits)) as url, Client(url) as client:
        found = client.embed([images(10)])
        assert found.object_id == tuple(f"object-{i}" for i in range(10))
        torch.testing.assert_close(found.vectors, FakeModel().embed([images(10)]).vectors, atol=1e-6, rtol=0)
        assert 4 <= model.num_calls <= 10


def test_neighbours_by_id_vector_and_measurement_agree(client, index):
    vector = index.vector("object-30", "image/hsc")
    expected = index.search(vector[None], 6, target_modality="image/hsc").object_id[0].tolist()
    options = {"target_modality": "image/hsc", "exclude_self": False}
    by_id = client.neighbours("object-30", 6, modality="image/hsc", **options)
    assert [n.object_id for n in by_id] == expected
    for query in (vector, torch.from_numpy(vector), images(120).select([30]), [images(120).select([30])]):
        assert client.neighbours(query, 6, **options)[0].object_id == "object-30"
    near = client.neighbours(vector, 6, cone=(13.0, 5.0, 0.15), with_labels=True)
    assert {n.object_id for n in near} <= {"object-29", "object-30", "object-31"}
    assert near[0].labels["scalar/redshift"] == pytest.approx(30 / 119)
    assert "object-30" not in [n.object_id for n in client.neighbours("object-30", 6)]


def test_prediction_comes_with_intervals_and_neighbours(client):
    found = client.predict("scalar/redshift", images(120).select([30]), k=5, target_modality="image/hsc")
    assert found.value == pytest.approx(30 / 119, abs=0.05)
    assert [interval.level for interval in found.intervals] == [0.68, 0.9, 0.95]
    assert sum(n.weight * n.label for n in found.neighbours) == pytest.approx(found.value)
    assert found.provenance["model_id"] == FakeModel.model_id


def test_the_server_is_described(client):
    assert client.models()[0]["id"] == FakeModel.model_id
    assert "image/hsc" in [entry["name"] for entry in client.modalities()]
    assert client.object("object-5")["modalities"] == ["image/hsc", "spectrum/desi"]
    assert client.collections()[0]["num_objects"] == 120
    assert client.limits()["max_items"] == 256


def test_problems_are_raised_with_their_document(client):
    with pytest.raises(ApiError, match="nearest known is 'object-119'") as caught:
        client.object("object-1199")
    assert caught.value.status == 404
    assert caught.value.problem["type"] == "/problems/not-found"
    with pytest.raises(ApiError, match="no property"):
        client.predict("scalar/mass", "object-1")


def test_one_object_that_the_model_refuses_is_an_error_that_names_it(client):
    given = spectra(3)
    bright = SpectrumObservation(
        given.modality,
        given.object_id,
        torch.where(torch.arange(3)[:, None] == 1, 1e7, given.flux),
        given.wavelength,
        given.inverse_variance,
    )
    with pytest.raises(ApiError, match="too bright") as caught:
        client.embed([bright])
    assert caught.value.problem["errors"][0]["pointer"] == "/input/1"


def test_a_query_of_several_objects_is_an_error_before_anything_is_sent(client):
    with pytest.raises(ValueError, match="these observations hold 4"):
        client.neighbours(images(4))


def test_a_server_that_is_not_ours_is_an_api_error_too(run):
    from fastapi import FastAPI

    with run(FastAPI()) as url, Client(url) as client, pytest.raises(ApiError, match="404"):
        client.models()
