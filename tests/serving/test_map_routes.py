import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
from astropy import units
from astropy.coordinates import SkyCoord
from fake_model import FakeModel
from http_bodies import assert_problem
from index_engines import Engine, numbers_of, sky_table, unit_rows
from starlette.testclient import TestClient

from armillary.serving.app import create_app
from armillary.serving.index.embedding_index import EmbeddingIndex
from armillary.serving.index.opening import open_index
from armillary.serving.index.rows import ID
from armillary.serving.maps import map_keeper
from armillary.serving.maps.map_keeper import MapKeeper
from armillary.serving.maps.map_points import Components, between_anchors, has_umap, save_plane
from armillary.serving.maps.object_table import ObjectTable

NO_UMAP = "umap-learn is not installed"


@pytest.fixture(scope="module")
def table():
    return sky_table(model_id=FakeModel.model_id)


@pytest.fixture(scope="module", params=["faiss", "lite"])
def engine_index(request, table, tmp_path_factory):
    """An index of each engine, with a tail and with rows that were removed."""
    if request.param == "lite":
        pytest.importorskip("milvus_lite")
        engine = Engine("lite", str(tmp_path_factory.mktemp("lite") / "index.db"))
    else:
        engine = Engine("faiss", str(tmp_path_factory.mktemp("indexes")), "flat")
    labels, metadata = numbers_of(table)
    made, _ = engine.make(table, labels, metadata)
    made.add(sky_table(3, seed=9, prefix="later-", model_id=FakeModel.model_id))
    made.remove(["object-5", "later-1"])
    return made


@pytest.fixture(scope="module")
def index_folder_of_sky(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sky-indexes") / "index"
    EmbeddingIndex.build(table, numbers_of(table)[0]).save(folder)
    return folder


@pytest.fixture
def http(model, index_folder_of_sky):
    index = EmbeddingIndex.load(index_folder_of_sky)
    with TestClient(create_app(model, index)) as client:
        client.index = index
        yield client


def columns(http, **parameters):
    answer = http.get("/v1/collections/objects/map", params=parameters)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/vnd.safetensors"
    length = int.from_bytes(answer.content[:8], "little")
    return safetensors.numpy.load(answer.content), json.loads(answer.content[8 : 8 + length])["__metadata__"]


def test_a_walk_sees_every_row_that_can_be_found_and_no_other(engine_index, table):
    expected = {
        (name, kind): vector
        for name, kind, vector in zip(table.object_id, table.modality, unit_rows(table), strict=True)
        if name != "object-5"
    }
    later = sky_table(3, seed=9, prefix="later-")
    expected |= {
        (name, kind): vector
        for name, kind, vector in zip(later.object_id, later.modality, unit_rows(later), strict=True)
        if name != "later-1"
    }
    seen = {}
    for block in engine_index.row_blocks():
        for row, key in enumerate(zip(block.object_id.tolist(), block.modality.tolist(), strict=True)):
            assert key not in seen
            seen[key] = block.vectors[row]
            ra, dec = engine_index.position_of(key[0])
            np.testing.assert_allclose([block.ra[row], block.dec[row]], [ra, dec])
            labels = {name: block.labels[name][row] for name in engine_index.manifest.labels}
            known = {name: value for name, value in labels.items() if not np.isnan(value)}
            assert known == pytest.approx(engine_index.labels_of(key[0]))
    assert seen.keys() == expected.keys()
    np.testing.assert_allclose(np.stack([seen[k] for k in expected]), np.stack(list(expected.values())), atol=1e-5)


def test_the_table_has_what_the_index_says_of_each_object_in_order_of_id(engine_index):
    made = ObjectTable.read(engine_index)
    ids = made.object_id.to_pylist()
    assert ids == sorted(ids, key=str.encode)
    assert len(ids) == engine_index.manifest.num_objects == len(set(ids))
    for number, name in enumerate(ids):
        np.testing.assert_allclose([made.ra[number], made.dec[number]], engine_index.position_of(name))
        known = {label: float(v[number]) for label, v in made.labels.items() if not np.isnan(v[number])}
        assert known == pytest.approx(engine_index.labels_of(name), rel=1e-6)
        has = [m for bit, m in enumerate(made.modality_names) if made.modalities[number] >> bit & 1]
        assert tuple(has) == engine_index.modalities_of(name)
        assert made.number_of(name) == number
    assert made.number_of("object-5") is None
    assert made.num_labelled["scalar/stellar_mass"] == 0


def test_the_plane_is_that_of_the_principal_components(http, table):
    """Against a decomposition of all rows at once, in float64, object by object."""
    vectors, kinds = unit_rows(table), np.array(table.modality)
    centred = vectors - np.stack([vectors[kinds == kind].mean(0) for kind in kinds])
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    ids = sorted(set(table.object_id), key=str.encode)
    names = np.array(table.object_id)
    expected = np.stack([(centred[names == name] @ axes.T).mean(0) for name in ids])
    made, metadata = columns(http)
    assert made.keys() == {"x", "y"}
    assert made["x"].dtype == np.float32
    assert metadata["index_id"] == http.index.manifest.index_id
    assert metadata["num_objects"] == str(len(ids))
    for axis, found in enumerate((made["x"], made["y"])):
        sign = np.sign(found @ expected[:, axis])
        np.testing.assert_allclose(sign * found, expected[:, axis], atol=2e-3)


def test_a_gap_between_modalities_is_not_what_the_map_shows():
    rng = np.random.default_rng(0)
    objects = rng.normal(size=(80, 6))
    gap = np.zeros(6)
    gap[5] = 40
    made = sky_table(80, dimension=6)
    kinds = np.array(made.modality)
    number = np.array([int(name.removeprefix("object-")) for name in made.object_id])
    offsets = {kind: i * gap for i, kind in enumerate(sorted(set(kinds)))}
    vectors = objects[number] + 60 + np.stack([offsets[kind] for kind in kinds])
    shifted = type(made)(
        made.object_id, made.modality, made.ra, made.dec, vectors.astype(np.float16), made.space, made.model_id
    )
    index = EmbeddingIndex.build(shifted)
    table = ObjectTable.read(index)
    plane = Components.fit(index).places(index, table)[:, :2]
    with_many = np.array([bin(bits).count("1") > 2 for bits in table.modalities])
    between = np.linalg.norm(plane[with_many].mean(0) - plane[~with_many].mean(0))
    assert between < 0.6 * plane.std()


def test_columns_are_those_of_the_objects_of_the_map(http):
    made, metadata = columns(http, columns="ra,dec,modalities,scalar/redshift")
    table = ObjectTable.read(http.index)
    for number in (0, 17, len(table) - 1):
        name = table.id_of(number)
        np.testing.assert_allclose([made["ra"][number], made["dec"][number]], http.index.position_of(name), rtol=1e-6)
        expected = http.index.labels_of(name).get("scalar/redshift", np.nan)
        np.testing.assert_allclose(made["scalar/redshift"][number], expected, rtol=1e-6)
        names = json.loads(metadata["modality_names"])
        has = tuple(m for bit, m in enumerate(names) if int(made["modalities"][number]) >> bit & 1)
        assert has == http.index.modalities_of(name)
    assert np.isnan(made["ra"]).sum() == 1
    counted = json.loads(metadata["num_labelled"])
    assert counted == {"scalar/redshift": int(np.isfinite(made["scalar/redshift"]).sum()), "scalar/stellar_mass": 0}


def test_the_map_follows_a_change_of_the_index(model, index_folder_of_sky, table, tmp_path):
    place = tmp_path / "index"
    EmbeddingIndex.build(table).save(place)
    index = EmbeddingIndex.load(place)
    with TestClient(create_app(model, index)) as client:
        before = columns(client)[0]["x"]
        index.remove(["object-0"])
        after, metadata = columns(client)
        assert len(after["x"]) == len(before) - 1 == int(metadata["num_objects"])
        found = client.get("/v1/collections/objects/map/points", params={"object_id": "object-0"}).json()
        assert found["points"] == [{"number": None, "object_id": "object-0"}]


def test_a_map_that_the_caller_has_is_not_sent_again(http):
    first = http.get("/v1/collections/objects/map")
    again = http.get("/v1/collections/objects/map", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert not again.content
    other = http.get("/v1/collections/objects/map?columns=ra", headers={"If-None-Match": first.headers["etag"]})
    assert other.status_code == 200


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("objects/map?columns=x,scalar/redshaft", "nearest known is 'scalar/redshift'"),
        ("objects/map?projection=tsne", "no projection 'tsne'"),
        ("objects/map?projection=tsne&columns=ra", "no projection 'tsne'"),
        ("other/map", "no collection 'other'"),
        ("other/map/points?number=0", "no collection 'other'"),
        ("objects/map/points?number=0&columns=x", "no column of the map 'x'"),
    ],
)
def test_what_the_map_has_not_is_a_problem(http, path, said):
    assert_problem(http.get(f"/v1/collections/{path}"), 404, "not-found", says=said)


def test_ids_that_are_not_there_have_no_number(index_folder_of_sky):
    made = ObjectTable.read(EmbeddingIndex.load(index_folder_of_sky))
    asked = pa.array(["nobody", "object-3", ""], ID)
    assert made.numbers_of(asked).tolist() == [-1, made.number_of("object-3"), -1]


@pytest.mark.parametrize("path", ["collections/objects/map", "collections/objects/map/points?number=0", "objects"])
def test_an_index_that_is_too_large_for_a_map_is_not_read(http, monkeypatch, path):
    monkeypatch.setattr(map_keeper, "MOST_OBJECTS", 10)
    monkeypatch.setattr(ObjectTable, "read", None)
    assert_problem(http.get(f"/v1/{path}"), 404, "not-found", says="at most 10")


def test_numbers_and_ids_name_the_same_objects(http):
    table = ObjectTable.read(http.index)
    ask = http.get("/v1/collections/objects/map/points", params={"number": [4, 0, 100_000], "object_id": ["object-7"]})
    assert ask.json()["points"] == [
        {"number": 4, "object_id": table.id_of(4)},
        {"number": 0, "object_id": table.id_of(0)},
        {"number": 100_000, "object_id": None},
        {"number": table.object_id.to_pylist().index("object-7"), "object_id": "object-7"},
    ]
    assert ask.json()["num_objects"] == len(table)
    assert ask.json()["index_id"] == http.index.manifest.index_id


def test_columns_are_told_of_each_object_as_the_index_has_them(http):
    columns = "ra,dec,scalar/redshift,scalar/stellar_mass"
    parameters = {"number": [3, 100_000], "object_id": ["object-7", "nobody"], "columns": columns}
    third, beyond, seventh, nobody = http.get("/v1/collections/objects/map/points", params=parameters).json()["points"]
    for told in (third, seventh):
        assert (told["ra"], told["dec"]) == http.index.position_of(told["object_id"])  # not rounded to float32
        known = http.index.labels_of(told["object_id"])
        assert told["scalar/redshift"] == pytest.approx(known.get("scalar/redshift"))
        assert told["scalar/stellar_mass"] is None  # nobody's is known
    assert beyond == {"number": 100_000, "object_id": None, **dict.fromkeys(columns.split(","))}
    assert nobody == {"number": None, "object_id": "nobody", **dict.fromkeys(columns.split(","))}


def test_objects_are_found_by_the_beginning_of_their_id(http):
    found = http.get("/v1/collections/objects/map/points", params={"prefix": "object-15", "limit": 4}).json()["points"]
    assert [one["object_id"] for one in found] == ["object-15", "object-150", "object-151", "object-152"]
    assert http.get("/v1/collections/objects/map/points", params={"prefix": "zzz"}).json()["points"] == []


@pytest.mark.parametrize(("ra", "dec", "radius"), [(0.0, 0.0, 0.3), (120.0, 89.95, 1.0), (200.0, -30.0, 60.0)])
def test_a_cone_holds_what_astropy_says_nearest_first(http, ra, dec, radius):
    table = ObjectTable.read(http.index)
    known = np.isfinite(table.dec)
    ids = np.array(table.object_id.to_pylist())[known]
    sky = SkyCoord(table.ra[known], table.dec[known], unit="deg")
    apart = sky.separation(SkyCoord(ra, dec, unit="deg")).to_value(units.deg)
    expected = [name for name, at in sorted(zip(ids, apart, strict=True), key=lambda pair: pair[1]) if at <= radius]
    answer = http.get("/v1/objects", params={"ra": ra, "dec": dec, "radius_deg": radius, "limit": 1000}).json()
    assert [one["object_id"] for one in answer["objects"]] == expected
    assert len(expected) > 2
    assert answer["num_found"] == len(expected)
    assert answer["next_cursor"] is None
    np.testing.assert_allclose(
        [one["separation_deg"] for one in answer["objects"]], np.sort(apart[apart <= radius]), atol=1e-9
    )


@pytest.mark.parametrize("cone", [{}, {"ra": 200.0, "dec": -30.0, "radius_deg": 120.0}])
def test_pages_hold_every_object_once(http, cone):
    seen, cursor = [], None
    for _ in itertools.count():
        parameters = {**cone, "limit": 33, **({"cursor": cursor} if cursor else {})}
        answer = http.get("/v1/objects", params=parameters).json()
        seen += [one["object_id"] for one in answer["objects"]]
        cursor = answer["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == answer["num_found"] > 66
    if not cone:
        assert seen == ObjectTable.read(http.index).object_id.to_pylist()


@pytest.mark.parametrize(
    ("parameters", "status", "kind"),
    [
        ({"ra": 1.0, "dec": 2.0}, 422, "invalid-request"),
        ({"ra": 360.0, "dec": 2.0, "radius_deg": 1.0}, 422, "invalid-request"),
        ({"ra": "nan", "dec": 2.0, "radius_deg": 1.0}, 422, "invalid-request"),
        ({"cursor": "what"}, 422, "invalid-request"),
        ({"cursor": "objects-000000000000:5"}, 409, "conflict"),
        ({"limit": 100_000}, 422, "invalid-request"),
    ],
)
def test_a_wrong_list_of_objects_is_a_problem(http, parameters, status, kind):
    assert_problem(http.get("/v1/objects", params=parameters), status, kind)


def test_other_objects_lie_between_their_nearest_anchors():
    rng = np.random.default_rng(3)
    places = rng.normal(size=(300, 5)).astype(np.float32)
    chosen = np.sort(rng.permutation(300)[:40])
    plane = rng.normal(size=(40, 2)).astype(np.float32)
    found = between_anchors(places, chosen, plane)
    for row in range(300):
        if row in chosen:
            expected = plane[chosen.tolist().index(row)]
        else:
            distance = np.linalg.norm(places[chosen].astype(np.float64) - places[row], axis=1)
            nearest = np.argsort(distance)[:5]
            weight = distance[nearest] ** -2.0
            expected = (weight[:, None] * plane[nearest]).sum(0) / weight.sum()
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_a_plane_that_was_laid_out_before_serves_again(model, index_folder_of_sky, tmp_path, monkeypatch):
    index = EmbeddingIndex.load(index_folder_of_sky)
    plane = np.random.default_rng(0).normal(size=(index.manifest.num_objects, 2)).astype(np.float32)
    save_plane(tmp_path, index.manifest.index_id, plane)
    monkeypatch.setattr(map_keeper, "umap_places", None)
    with TestClient(create_app(model, index, state=tmp_path)) as client:
        made, _ = columns(client, projection="umap")
    np.testing.assert_array_equal(np.stack([made["x"], made["y"]], 1), plane)


@pytest.mark.parametrize("damage", ["truncated", "other"])
def test_a_saved_plane_that_does_not_fit_is_not_used(index_folder_of_sky, tmp_path, monkeypatch, damage):
    index = open_index(index_folder_of_sky)[0]
    plane = np.zeros((index.manifest.num_objects + (damage == "other"), 2), np.float32)
    save_plane(tmp_path, index.manifest.index_id, plane)
    (file,) = (tmp_path / "maps").iterdir()
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    monkeypatch.setattr(map_keeper, "has_umap", lambda: True)
    monkeypatch.setattr(map_keeper, "umap_places", lambda places: places[:, :2] + 7)
    keeper = MapKeeper(tmp_path)
    while (made := keeper.plane(index, "umap"))[1] is None:
        pass
    np.testing.assert_array_equal(made[1], made[0].components[:, :2] + 7)


def test_without_umap_the_server_says_so(http, monkeypatch):
    monkeypatch.setattr(map_keeper, "has_umap", lambda: False)
    answer = http.get("/v1/collections/objects/map", params={"projection": "umap"})
    assert_problem(answer, 404, "not-found", says="not installed")


def test_until_umap_is_laid_out_the_answer_is_202(http, monkeypatch):
    monkeypatch.setattr(map_keeper, "has_umap", lambda: True)
    monkeypatch.setattr(map_keeper.MapKeeper, "_lay_out", lambda self, made: None)
    answer = http.get("/v1/collections/objects/map", params={"projection": "umap"})
    assert answer.status_code == 202
    assert answer.json()["status"] == "EXECUTING"
    assert int(answer.headers["retry-after"]) > 0
    assert columns(http)[0]["x"].any()  # the other projection is there meanwhile


@pytest.mark.slow
@pytest.mark.skipif(not has_umap(), reason=NO_UMAP)
def test_umap_keeps_clusters_apart(tmp_path):
    from armillary.serving.maps.map_points import umap_places

    rng = np.random.default_rng(0)
    centres = rng.normal(0, 8, (3, 10))
    group = np.repeat(np.arange(3), 60)
    places = (centres[group] + rng.normal(size=(180, 10))).astype(np.float32)
    plane = umap_places(places)
    assert plane.shape == (180, 2)
    assert plane.dtype == np.float32
    middles = np.stack([plane[group == g].mean(0) for g in range(3)])
    assert (np.linalg.norm(plane[:, None] - middles, axis=-1).argmin(1) == group).mean() > 0.95
