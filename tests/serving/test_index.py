import builtins
import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
from astropy import units
from astropy.coordinates import SkyCoord

from armillary.models.embeddings import EmbeddingTable, write_embedding_shard
from armillary.serving.index.cone import Cone
from armillary.serving.index.embedding_index import EmbeddingIndex, EmbeddingIndexError

MODALITIES = ("image/hsc", "spectrum/desi")


def table(num_objects=200, dimension=16, seed=0):
    """Objects with an image, every second with a spectrum too, all over the sky."""
    rng = np.random.default_rng(seed)
    ids = [f"object-{i}" for i in range(num_objects)]
    rows = [(i, MODALITIES[0]) for i in range(num_objects)] + [(i, MODALITIES[1]) for i in range(0, num_objects, 2)]
    ra, dec = rng.uniform(0, 360, num_objects), np.degrees(np.arcsin(rng.uniform(-1, 1, num_objects)))
    ra[3] = dec[3] = np.nan
    place = [i for i, _ in rows]
    return EmbeddingTable(
        object_id=tuple(ids[i] for i in place),
        modality=tuple(modality for _, modality in rows),
        ra=ra[place],
        dec=dec[place],
        vectors=rng.normal(size=(len(rows), dimension)).astype(np.float16),
        space="aligned",
        model_id="armillary-1",
    )


def labels(given):
    ids = sorted(set(given.object_id))
    redshift = np.linspace(0, 1, len(ids))
    redshift[5] = np.nan
    return {"object_id": ids, "scalar/redshift": redshift}


@pytest.fixture(scope="module", params=["flat", "ivf"])
def index(request):
    return EmbeddingIndex.build(table(), labels(table()), flat_limit=1000 if request.param == "flat" else 10)


def slow_search(given, query, k, allowed):
    unit = given.vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ (query / np.linalg.norm(query))
    rows = sorted(np.flatnonzero(allowed), key=lambda row: -cosine[row])[:k]
    return rows, cosine[rows]


def queries(count=7, dimension=16):
    return np.random.default_rng(5).normal(size=(count, dimension)).astype(np.float32) * 3


FILTERS = [
    {},
    {"target_modality": "spectrum/desi"},
    {"exclude": ["object-2", "object-8"]},
    {"cone": Cone(120.0, 10.0, 60.0)},
    {"cone": Cone(120.0, 10.0, 70.0), "target_modality": "spectrum/desi", "exclude": ["object-4"]},
]


@pytest.mark.parametrize("filters", FILTERS)
def test_search_equals_brute_force_under_filters(index, filters):
    given = table()
    allowed = np.ones(len(given), bool)
    if "target_modality" in filters:
        allowed &= np.array(given.modality) == filters["target_modality"]
    allowed &= ~np.isin(given.object_id, filters.get("exclude", []))
    if "cone" in filters:
        cone = filters["cone"]
        here = SkyCoord(cone.ra * units.deg, cone.dec * units.deg)
        known = np.isfinite(given.ra)
        there = SkyCoord(np.where(known, given.ra, 0) * units.deg, np.where(known, given.dec, 0) * units.deg)
        allowed &= known & (here.separation(there).deg <= cone.radius_deg)
        assert 10 < allowed.sum() < 0.7 * len(allowed)
    found = index.search(queries(), 10, **filters)
    for q, query in enumerate(queries()):
        rows, cosine = slow_search(given, query, 10, allowed)
        assert found.row[q].tolist() == list(rows)
        np.testing.assert_allclose(found.similarity[q], cosine, atol=1e-5)
        assert found.object_id[q].tolist() == [given.object_id[row] for row in rows]
        assert found.modality[q].tolist() == [given.modality[row] for row in rows]
        np.testing.assert_array_equal(found.ra[q], given.ra[rows])


def test_each_query_excludes_its_own_object(index):
    given = table()
    mine = ["object-0", "object-1", "absent"]
    asked = np.stack([index.vector("object-0"), index.vector("object-1"), queries()[0]])
    found = index.search(asked, 5, exclude_each=mine)
    assert found.row.shape == (3, 5)
    for q, query in enumerate(asked):
        allowed = np.array(given.object_id) != mine[q]
        assert found.row[q].tolist() == slow_search(given, query, 5, allowed)[0]


def test_probed_cells_find_most_neighbours_and_the_exact_search_all(monkeypatch):
    monkeypatch.setattr("armillary.serving.index.part.EXACT_ROWS", 100)
    given = table(num_objects=4000)
    index = EmbeddingIndex.build(given, flat_limit=100)
    assert index.manifest.index_type == "ivf_sq8"
    asked = given.vectors[20:40].astype(np.float32)
    every = np.ones(len(given), bool)
    slow = [slow_search(given, query, 10, every)[0] for query in asked]
    exact = index.search(asked, 10, exact=True)
    assert exact.row.tolist() == [list(rows) for rows in slow]
    probed = index.search(asked, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(probed.row.tolist(), slow, strict=True)])
    # Without clusters to find, cells help least: 16 of 310 hold the nearest row itself and some others.
    assert 0.3 < recall < 1
    assert probed.row[:, 0].tolist() == list(range(20, 40))


def test_a_filtered_search_of_few_cells_still_returns_k_rows(monkeypatch):
    monkeypatch.setattr("armillary.serving.index.part.EXACT_ROWS", 100)
    index = EmbeddingIndex.build(table(num_objects=4000), flat_limit=100)
    found = index.search(queries(), 1500, target_modality="spectrum/desi")
    assert (found.row >= 0).all()
    assert found.row.shape == (7, 1500)


def test_fewer_matches_than_k_give_fewer_columns_and_none_gives_none(index):
    one = index.search(queries(2), 10, target_modality="spectrum/desi", exclude=[f"object-{i}" for i in range(4, 200)])
    assert [sorted(ids) for ids in one.object_id.tolist()] == [["object-0", "object-2"]] * 2
    none = index.search(queries(2), 10, cone=Cone(0.0, 0.0, 0.0))
    assert none.row.shape == (2, 0)


def test_a_cone_tells_arcseconds_apart():
    cone = Cone(359.9999, 60.0, 1 / 3600)
    offsets = np.array([0.9, 1.1]) / 3600 / np.cos(np.radians(60))
    assert cone.contains((359.9999 + offsets) % 360, np.array([60.0, 60.0])).tolist() == [True, False]


def test_vector_of_a_modality_and_mean_over_modalities(index):
    given = table()
    image = given.vectors[2].astype(np.float64)
    spectrum = given.vectors[201].astype(np.float64)
    image, spectrum = image / np.linalg.norm(image), spectrum / np.linalg.norm(spectrum)
    np.testing.assert_allclose(index.vector("object-2", "spectrum/desi"), spectrum, atol=1e-6)
    mean = (image + spectrum) / 2
    np.testing.assert_allclose(index.vector("object-2"), mean / np.linalg.norm(mean), atol=1e-6)


def test_unknown_names_are_errors_with_the_nearest(index):
    with pytest.raises(LookupError, match="nearest known is 'object-199'"):
        index.vector("object-1999")
    with pytest.raises(LookupError, match=r"has no 'spectrum/desi' in the index; it has \['image/hsc'\]"):
        index.vector("object-1", "spectrum/desi")
    with pytest.raises(LookupError, match="no modality 'image/desi' in the index"):
        index.search(queries(), 3, target_modality="image/desi")
    with pytest.raises(LookupError, match="no label 'scalar/mass'"):
        index.label_of_rows("scalar/mass", np.zeros((1, 1), np.int64))


def test_labels_follow_rows(index):
    known = dict(zip(*labels(table()).values(), strict=True))
    found = index.search(queries(), 5)
    values = index.label_of_rows("scalar/redshift", found.row)
    np.testing.assert_array_equal(values, np.vectorize(known.get)(found.object_id))
    assert index.labels_of("object-0") == {"scalar/redshift": pytest.approx(known["object-0"])}
    unlabelled = sorted(known)[5]
    assert index.labels_of(unlabelled) == {}


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_queries_without_direction_are_refused(index, value):
    broken = queries()
    broken[2] = value
    with pytest.raises(EmbeddingIndexError, match="query 2 has no direction"):
        index.search(broken, 3)
    with pytest.raises(EmbeddingIndexError, match=r"shape \[queries, 16\], found \[7, 4\]"):
        index.search(queries()[:, :4], 3)


def test_a_loaded_index_searches_the_same(index, tmp_path):
    manifest = index.save(tmp_path / "index")
    loaded = EmbeddingIndex.load(tmp_path / "index")
    for filters in FILTERS:
        before, after = index.search(queries(), 10, **filters), loaded.search(queries(), 10, **filters)
        np.testing.assert_array_equal(before.row, after.row)
    np.testing.assert_array_equal(index.vector("object-2"), loaded.vector("object-2"))
    for name in ("object_id", "scalar/redshift"):
        np.testing.assert_array_equal(loaded.labels[name].to_numpy(), index.labels[name].to_numpy())
    assert loaded.manifest == manifest
    assert loaded.manifest.index_id.startswith("objects-")
    assert (loaded.manifest.num_objects, loaded.manifest.num_rows) == (200, 300)
    assert "300 rows" in loaded.manifest.reason or "200 rows" in loaded.manifest.reason


def test_equal_content_has_equal_id(tmp_path):
    ids = [EmbeddingIndex.build(table(seed=seed)).save(tmp_path / str(n)).index_id for n, seed in enumerate((0, 0, 1))]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    "name", ["vectors.npy", "inverse_length.npy", "rows.arrow", "by_id.npy", "labels.parquet", "part-0.faiss"]
)
def test_a_flipped_byte_is_refused(tmp_path, name):
    EmbeddingIndex.build(table(), labels(table())).save(tmp_path / "index")
    path = tmp_path / "index" / "base-0" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(EmbeddingIndexError, match=rf"{name}: its SHA-256 is"):
        EmbeddingIndex.load(tmp_path / "index")


def test_a_missing_file_and_a_strange_manifest_are_refused(tmp_path):
    with pytest.raises(EmbeddingIndexError, match="is this an index"):
        EmbeddingIndex.load(tmp_path / "nothing")
    EmbeddingIndex.build(table()).save(tmp_path / "index")
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    (tmp_path / "index" / "manifest.json").write_text(json.dumps({**manifest, "format_version": 7}))
    with pytest.raises(EmbeddingIndexError, match="format_version is 7"):
        EmbeddingIndex.load(tmp_path / "index")


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    def disk_full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", disk_full)
    with pytest.raises(OSError, match="No space"):
        EmbeddingIndex.build(table()).save(tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_a_saved_index_is_not_overwritten(tmp_path):
    EmbeddingIndex.build(table()).save(tmp_path / "index")
    before = hashlib.sha256((tmp_path / "index" / "manifest.json").read_bytes()).hexdigest()
    with pytest.raises(EmbeddingIndexError, match="something already"):
        EmbeddingIndex.build(table(seed=1)).save(tmp_path / "index")
    assert hashlib.sha256((tmp_path / "index" / "manifest.json").read_bytes()).hexdigest() == before


def test_an_index_is_built_from_shards(tmp_path):
    given = table()
    for name, part in (("a", slice(0, 100)), ("b", slice(100, 300))):
        write_embedding_shard(
            tmp_path / f"{name}.parquet",
            given.object_id[part],
            given.modality[part],
            given.vectors[part],
            model_id=given.model_id,
            space=given.space,
        )
    whole = EmbeddingIndex.build(given).search(queries(), 5)
    np.testing.assert_array_equal(EmbeddingIndex.build(tmp_path).search(queries(), 5).row, whole.row)


def test_rows_given_twice_and_vectors_without_direction_are_refused():
    given = table()
    doubled = EmbeddingTable(
        ("a", "a"), ("image/hsc",) * 2, np.zeros(2), np.zeros(2), given.vectors[:2], "aligned", "armillary-1"
    )
    with pytest.raises(EmbeddingIndexError, match="object a has image/hsc twice"):
        EmbeddingIndex.build(doubled)
    zero = np.zeros((1, 4), np.float16)
    with pytest.raises(EmbeddingIndexError, match="object a, image/hsc"):
        EmbeddingIndex.build(EmbeddingTable(("a",), ("image/hsc",), np.zeros(1), np.zeros(1), zero, "aligned", "m"))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"object_id": ["object-0", "stranger"], "scalar/redshift": [0.1, 0.2]}, "the first: 'stranger'"),
        ({"object_id": ["object-0", "object-0"], "scalar/redshift": [0.1, 0.2]}, "stands in two rows"),
        ({"object_id": ["object-0"], "scalar/redshift": ["far"]}, "'scalar/redshift' must be a column of numbers"),
        ({"redshift": [0.1]}, "must have a column object_id"),
    ],
)
def test_wrong_labels_are_refused(wrong, message):
    with pytest.raises(EmbeddingIndexError, match=message):
        EmbeddingIndex.build(table(), pa.table(wrong))


def test_another_model_is_refused(index):
    index.require_model("armillary-1")
    with pytest.raises(EmbeddingIndexError, match="embeddings of model 'armillary-1'"):
        index.require_model("armillary-2")


def test_absent_faiss_is_an_error_that_names_both_extras(monkeypatch):
    real_import = builtins.__import__

    def without_faiss(name, *arguments, **options):
        if name == "faiss":
            raise ImportError("No module named 'faiss'")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_faiss)
    with pytest.raises(ImportError, match=r"armillary\[cpu\].*armillary\[gpu\]"):
        EmbeddingIndex.build(table())
