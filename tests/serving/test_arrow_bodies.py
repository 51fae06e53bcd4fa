"""Arrow in and out: the vectors of JSON bodies, shapes that differ, and buffers that are not what they claim."""

import json

import numpy as np
import pyarrow as pa
import pytest
from arrow_uploads import image_table, lists, stream
from fake_model import FakeModel, images, spectra
from http_bodies import assert_problem, typed_image
from starlette.testclient import TestClient

from armillary.data.modalities import modality
from armillary.data.observations import ScalarObservation
from armillary.serving.app import create_app
from armillary.serving.formats.arrow_body import read_arrow
from armillary.serving.limits import Limits
from armillary.serving.problems import ProblemError

ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture
def http(model, index):
    with TestClient(create_app(model, index)) as client:
        yield client


def post(http, table, accept="application/json", query="", **options):
    body = table if isinstance(table, bytes) else stream(table, **options)
    return http.post(f"/v1/embeddings{query}", content=body, headers={"content-type": ARROW, "accept": accept})


def vectors(response):
    assert response.status_code == 200, response.text
    return np.array([datum["embedding"] for datum in response.json()["data"]], np.float32)


@pytest.mark.parametrize("fixed", [True, False])
def test_images_spectra_and_scalars_give_the_vectors_of_the_model(http, fixed):
    local = images()
    found = post(http, image_table(local, fixed, object_id=list(local.object_id)))
    np.testing.assert_allclose(vectors(found), FakeModel().embed([local]).numpy(), atol=1e-6)
    assert [datum["object_id"] for datum in found.json()["data"]] == list(local.object_id)
    names = ("flux", "wavelength", "inverse_variance", "mask")
    columns = {name: lists(np.ascontiguousarray(getattr(spectra(), name)), fixed) for name in names}
    found = post(http, pa.table(columns, metadata={"modality": "spectrum/desi"}))
    np.testing.assert_allclose(vectors(found), FakeModel().embed([spectra()]).numpy(), atol=1e-6)
    redshift = ScalarObservation(modality("scalar/redshift"), ["a", "b"], [0.1, 0.2])
    scalars = pa.table({"values": [0.1, 0.2]}, metadata={"modality": "scalar/redshift", "space": "encoder"})
    np.testing.assert_allclose(
        vectors(post(http, scalars)), FakeModel().embed([redshift], "encoder").numpy(), atol=1e-6
    )


def test_images_of_several_sizes_and_bands_from_the_query_go_in_one_body(http):
    small, large = images(1, side=8, bands=("g",)), images(1, seed=3, side=12, bands=("g",))
    flux = pa.array([small.flux[0].tolist(), large.flux[0].tolist()], pa.list_(pa.list_(pa.list_(pa.float32()))))
    found = post(http, pa.table({"flux": flux}), query="?modality=image/hsc&bands=g")
    expected = [FakeModel().embed([given]).numpy()[0] for given in (small, large)]
    np.testing.assert_allclose(vectors(found), expected, atol=1e-6)


def test_null_is_what_an_object_does_not_have_and_a_bad_one_fails_alone(model, index):
    seen = []

    class Watching(FakeModel):
        def embed(self, observations, space="aligned"):
            seen.extend(observations)
            return super().embed(observations, space)

    local = images(5)
    flux = lists(local.flux.numpy(), fixed=False).to_pylist()
    flux[1], flux[2][0][3] = None, [1.0]
    table = image_table(
        local,
        psf_fwhm=pa.array([[0.5, 0.6], None, None, None, None]),
        ra=pa.array([1.0, 2.0, 3.0, None, float("nan")]),
        dec=pa.array([1.0] * 5),
        object_id=pa.array([1, 2, 3, 4, None]),
    ).set_column(0, "flux", pa.array(flux, pa.list_(pa.list_(pa.list_(pa.float32())))))
    with TestClient(create_app(Watching(), index)) as http:
        data = post(http, table).json()["data"]
    assert [datum["embedding"] is None for datum in data] == [False, True, True, False, False]
    assert [datum["object_id"] for datum in data] == ["1", None, None, "4", None]
    assert "null" in data[1]["error"]["detail"]
    assert "one length, found [1, 8]" in data[2]["error"]["detail"]
    fwhm = np.concatenate([observation.psf_fwhm.numpy() for observation in seen])
    typical = [band.psf_fwhm for band in local.card.bands[:2]]
    np.testing.assert_allclose(sorted(fwhm[:, 0]), sorted([0.5, typical[0], typical[0]]))
    ra = np.concatenate([observation.ra.numpy() for observation in seen])
    assert sorted(np.isnan(ra)) == [False, True, True]


def test_what_pandas_leaves_in_a_schema_is_passed_over(http):
    assert post(http, image_table(images(), metadata={"pandas": "{}", "huggingface": "{}"})).status_code == 200


FLUX = images().flux.numpy()
META = {"modality": "image/hsc", "bands": "g,r"}


def flux_table(array, name="flux", **metadata):
    return pa.table({name: array}, metadata={**META, **metadata})


WRONG = {
    "dictionary": (flux_table(pa.array(["a", "b"]).dictionary_encode()), 422, "invalid-request", None),
    "text": (flux_table(pa.array(["a", "b"])), 422, "invalid-request", "/flux"),
    "null column": (flux_table(pa.nulls(3)), 422, "invalid-request", "/flux"),
    "time": (flux_table(pa.array([1], pa.timestamp("s"))), 422, "invalid-request", "/flux"),
    "struct": (flux_table(pa.array([{"a": 1.0}])), 422, "invalid-request", "/flux"),
    "extension": (
        flux_table(pa.FixedShapeTensorArray.from_numpy_ndarray(FLUX)),
        422,
        "invalid-request",
        "/flux",
    ),
    "unknown column": (flux_table(lists(FLUX), "flax"), 422, "invalid-request", "/flax"),
    "no flux": (flux_table(lists(FLUX), "mask"), 422, "invalid-request", "/flux"),
    "no modality": (pa.table({"flux": lists(FLUX)}), 422, "invalid-request", "/modality"),
    "unknown modality": (flux_table(lists(FLUX), modality="image/hcs"), 404, "not-found", None),
    "unknown space": (flux_table(lists(FLUX), space="moon"), 422, "invalid-request", "/space"),
    "no rows": (flux_table(lists(FLUX[:0])), 422, "invalid-request", "/flux"),
    "flat": (flux_table(lists(FLUX[:, 0, 0])), 422, "invalid-observation", "/input/0/data"),
    "null pixel": (
        flux_table(pa.array([[[[1.0, None], [1, 1]]] * 2], pa.list_(pa.list_(pa.list_(pa.float32()))))),
        422,
        "invalid-observation",
        "/input/0/flux",
    ),
    "ra in lists": (
        pa.table({"flux": lists(FLUX[:1]), "ra": pa.array([[1.0]])}, metadata=META),
        422,
        "invalid-observation",
        "/input/0/ra",
    ),
}


@pytest.mark.parametrize("table, status, kind, pointer", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(http, table, status, kind, pointer):
    assert_problem(post(http, table), status, kind, pointer)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compression_is_refused_before_anything_is_unpacked(http, codec):
    big = image_table(images(40, side=64))
    assert_problem(post(http, big, compression=codec), 422, "invalid-request", says="without compression")


def test_too_many_rows_are_413(model):
    with TestClient(create_app(model, limits=Limits(max_items=3))) as http:
        assert_problem(post(http, image_table(images())), 413, "too-large", says="at most 3")


def test_a_stream_that_is_cut_or_changed_is_refused_or_read_as_it_says():
    body = stream(image_table(images(), fixed=False, object_id=["a", "b", "c", "d"]))
    good = body.rindex(b"\xff\xff\xff\xff")
    with pytest.raises(ProblemError):
        read_arrow(b"", Limits())
    for size in range(8, good - 8, 40):
        with pytest.raises(ProblemError) as caught:
            read_arrow(body[:size], Limits())
        assert caught.value.kind == "malformed-body"


def test_lengths_that_the_bytes_do_not_hold_are_400():
    claims = pa.schema([pa.field("flux", pa.list_(pa.list_(pa.float32(), 2**30), 2**30))], metadata=META)
    file = pa.BufferOutputStream()
    pa.ipc.new_stream(file, claims).close()
    with pytest.raises(ProblemError, match="claims 1152921504606846976 numbers a row"):
        read_arrow(file.getvalue().to_pybytes(), Limits())
    table = image_table(images(), fixed=False)
    body = stream(table)
    offsets = np.arange(0, 5 * 2, 2, dtype=np.int32).tobytes()
    at = body.index(offsets)
    lying = body[:at] + np.array([0, 2, 4, 6, 2**31 - 1], np.int32).tobytes() + body[at + len(offsets) :]
    with pytest.raises(ProblemError, match="not an Arrow stream"):
        read_arrow(lying, Limits())


def test_an_arrow_answer_holds_vectors_ids_and_errors(http, model):
    items = [typed_image(row=0, object_id="a"), typed_image(bands=["g", "v"]), typed_image(row=2)]
    answer = http.post("/v1/embeddings", json={"input": items}, headers={"accept": ARROW})
    assert answer.headers["content-type"] == ARROW
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    expected = FakeModel().embed([images()]).numpy()
    found = table.column("embedding").to_pylist()
    np.testing.assert_allclose([found[0], found[2]], expected[[0, 2]], atol=1e-6)
    assert found[1] is None
    assert table.column("object_id").to_pylist() == ["a", None, None]
    assert table.column("modalities").to_pylist() == [["image/hsc"], None, ["image/hsc"]]
    errors = table.column("error").to_pylist()
    assert (errors[0], errors[2]) == (None, None)
    assert json.loads(errors[1])["status"] == 422
    assert json.loads(table.schema.metadata[b"provenance"])["model_id"] == model.model_id
    assert_problem(
        http.post("/v1/embeddings", json={"input": items[1:2]}, headers={"accept": ARROW}), 422, "invalid-observation"
    )


def test_arrow_in_and_arrow_out(http):
    answer = post(http, image_table(images()), accept=ARROW)
    table = pa.ipc.open_stream(answer.content).read_all()
    vectors_out = np.stack(table.column("embedding").to_numpy())
    np.testing.assert_array_equal(vectors_out, FakeModel().embed([images()]).numpy())
