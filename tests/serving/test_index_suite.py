"""What every index promises, whichever engine keeps the vectors: one suite for FAISS, milvus-lite and a Milvus server.

The oracle compares all vectors in float64. The server runs under the marker `slow`.
"""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from index_engines import (
    MODALITIES,
    NUM_OBJECTS,
    Engine,
    numbers_of,
    pairs_of,
    queries,
    sky_table,
    slow_search,
    unit_rows,
)
from milvus_server import MilvusServer, why_not

from armillary.models.embeddings import EmbeddingTable, write_embedding_shard
from armillary.models.neighbour_prediction import NeighbourPredictor
from armillary.serving.index.cone import Cone
from armillary.serving.index.opening import build_for, open_index, save_index
from armillary.serving.index.protocol import EmbeddingIndexError
from armillary.serving.milvus.engine import TOKEN_VARIABLE

HERE = Path(__file__).parent
ENGINES = [
    ("faiss", "flat"),
    pytest.param(("faiss", "ivf"), marks=pytest.mark.slow),  # by default it is in test_index.py and test_index_types.py
    ("lite", None),
    pytest.param(("lite", "ivf_sq8"), marks=pytest.mark.slow),
    *(pytest.param(("server", kind), marks=pytest.mark.slow) for kind in (None, "ivf_sq8", "hnsw")),
]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with MilvusServer(tmp_path_factory.mktemp("milvus")) as running:
        yield running


@pytest.fixture(scope="module", params=ENGINES, ids=lambda pair: "-".join(map(str, pair)))
def engine(request, tmp_path_factory):
    name, index_type = request.param
    if name == "faiss":
        yield Engine("faiss", str(tmp_path_factory.mktemp("indexes")), index_type)
    elif name == "lite":
        pytest.importorskip("milvus_lite")
        yield Engine("lite", str(tmp_path_factory.mktemp("lite") / "index.db"), index_type)
    else:
        running = request.getfixturevalue("server")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(TOKEN_VARIABLE, running.token)
            yield Engine("server", running.url, index_type)


@pytest.fixture(scope="module")
def given():
    return sky_table()


@pytest.fixture(scope="module")
def index(engine, given):
    """Never changed by a test."""
    return engine.make(given, *numbers_of(given))[0]


def on_sky(table, cone):
    """By astropy, which shares nothing with our way."""
    known = np.isfinite(table.ra)
    places = SkyCoord(np.where(known, table.ra, 0) * units.deg, np.where(known, table.dec, 0) * units.deg)
    centre = SkyCoord(cone.ra * units.deg, cone.dec * units.deg)
    return known & (centre.separation(places).deg <= cone.radius_deg)


def allowed_by(table, filters):
    """Which rows pass, one row and one filter at a time."""
    labels, metadata = numbers_of(table)
    redshift = dict(zip(labels["object_id"], labels["scalar/redshift"], strict=True))
    columns = {n: dict(zip(metadata["object_id"], v, strict=True)) for n, v in metadata.items() if n != "object_id"}
    in_cone = on_sky(table, filters["cone"]) if "cone" in filters else np.ones(len(table), bool)
    allowed = []
    for row, (name, modality) in enumerate(zip(table.object_id, table.modality, strict=True)):
        surveys = [one.split("/")[1] for one in modality.split("+")]
        passes = in_cone[row] and name not in filters.get("exclude", [])
        passes &= filters.get("target_modality") in (None, modality)
        passes &= filters.get("survey") in (None, *surveys)
        passes &= "has_label" not in filters or not math.isnan(redshift[name])
        for column, (low, high) in filters.get("where", {}).items():
            value = columns[column][name]
            passes &= not math.isnan(value) and (low is None or value >= low) and (high is None or value <= high)
        allowed.append(bool(passes))
    return np.array(allowed)


FILTERS = {
    "none": {},
    "modality": {"target_modality": "spectrum/desi"},
    "survey": {"survey": "desi"},
    "survey and modality": {"survey": "hsc", "target_modality": "image/hsc"},
    "exclude": {"exclude": ["object-2", "object-8", "nobody"]},
    "label": {"has_label": "scalar/redshift"},
    "range": {"where": {"scalar/legacysurvey_r": (18.0, 19.5)}},
    "open ranges": {"where": {"scalar/legacysurvey_r": (None, 21.0), "depth": (-5.0, None)}},
    "any known value": {"where": {"scalar/legacysurvey_r": (None, None)}},
    "cone": {"cone": Cone(120.0, 10.0, 60.0)},
    "half the sky": {"cone": Cone(200.0, -40.0, 90.0)},
    "the whole sky": {"cone": Cone(200.0, -40.0, 180.0)},
    "north pole": {"cone": Cone(77.0, 90.0, 0.2)},
    "beside the south pole": {"cone": Cone(200.0, -89.85, 0.14)},
    "across ra 0": {"cone": Cone(359.9, 0.0, 0.25)},
    "all": {
        "cone": Cone(120.0, 10.0, 80.0),
        "survey": "hsc",
        "exclude": ["object-4"],
        "has_label": "scalar/redshift",
        "where": {"depth": (-18.0, 15.0)},
    },
}


@pytest.mark.parametrize("name", FILTERS)
def test_exact_search_equals_brute_force_under_every_filter(index, given, name):
    allowed = allowed_by(given, FILTERS[name])
    assert allowed.any()
    assert allowed.all() == (name == "none")
    found = index.search(queries(), 10, **FILTERS[name], exact=True)
    positions = {n: (a, d) for n, a, d in zip(given.object_id, given.ra, given.dec, strict=True)}
    for q, query in enumerate(queries()):
        pairs, cosine = slow_search(given, query, 10, allowed)
        assert pairs_of(found, q) == pairs
        there = found.row[q] >= 0
        np.testing.assert_allclose(found.similarity[q][there], cosine, atol=1e-5)
        for object_id, ra, dec in zip(found.object_id[q], found.ra[q], found.dec[q], strict=True):
            np.testing.assert_array_equal((ra, dec), positions[object_id])


@pytest.mark.parametrize("name", FILTERS)
def test_search_finds_the_nearest_under_every_filter(index, given, name):
    """Every engine compares all rows that pass where they are so few, whatever its type."""
    allowed = allowed_by(given, FILTERS[name])
    found = index.search(queries(), 10, **FILTERS[name])
    expected = [slow_search(given, query, 10, allowed)[0] for query in queries()]
    hits = [len(set(pairs_of(found, q)) & set(pairs)) for q, pairs in enumerate(expected)]
    assert sum(hits) >= 0.95 * sum(map(len, expected))
    for q in range(len(queries())):
        assert len(pairs_of(found, q)) == len(expected[q])
        assert (np.diff(found.similarity[q]) <= 0).all()


def test_each_query_leaves_out_its_own_object(index, given):
    mine = ["object-0", "object-1", "nobody"]
    asked = np.stack([index.vector("object-0"), index.vector("object-1"), queries()[0]])
    found = index.search(asked, 5, exclude_each=mine, exact=True)
    assert found.row.shape == (3, 5)
    for q, query in enumerate(asked):
        assert pairs_of(found, q) == slow_search(given, query, 5, np.array(given.object_id) != mine[q])[0]


def test_where_fewer_match_than_asked_for_all_of_them_come_back(index, given):
    every = index.search(queries(2), len(given) + 50)
    assert every.row.shape == (2, len(given))
    few = index.search(queries(2), 50, cone=Cone(359.9, 0.0, 0.25))
    allowed = on_sky(given, Cone(359.9, 0.0, 0.25))
    assert few.row.shape == (2, allowed.sum())
    two = {"target_modality": "image/hsc", "exclude": [f"object-{i}" for i in range(2, NUM_OBJECTS)]}
    own = index.search(queries(3), 10, **two, exclude_each=["object-0", "object-1", "nobody"])
    assert [sorted(i for i, _ in pairs_of(own, q)) for q in range(3)] == [
        ["object-1"],
        ["object-0"],
        ["object-0", "object-1"],
    ]
    assert np.isneginf(own.similarity[0, 1])
    assert (own.row[0, 1], own.object_id[0, 1]) == (-1, "")
    assert math.isnan(own.ra[0, 1])
    assert index.search(queries(2), 10, cone=Cone(0.0, 45.0, 0.0)).row.shape == (2, 0)
    assert index.search(queries(2), 10, has_label="scalar/stellar_mass").row.shape == (2, 0)


def test_vectors_are_those_that_were_given_at_unit_length(index, given):
    rows = dict(zip(zip(given.object_id, given.modality, strict=True), unit_rows(given), strict=True))
    for name in MODALITIES:
        np.testing.assert_allclose(index.vector("object-0", name), rows["object-0", name], atol=1e-6)
    mean = rows["object-3", "image/hsc"] + rows["object-3", "spectrum/desi"]
    np.testing.assert_allclose(index.vector("object-3"), mean / np.linalg.norm(mean), atol=1e-6)
    ids = ["object-9", "object-3", "object-9", "object-30"]
    found = index.vectors(ids, "spectrum/desi")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [rows[i, "spectrum/desi"] for i in ids], atol=1e-6)
    assert index.vectors([], "spectrum/desi").shape == (0, given.vectors.shape[1])


def test_objects_have_modalities_positions_and_labels(index, given):
    labels, _ = numbers_of(given)
    known = dict(zip(labels["object_id"], labels["scalar/redshift"], strict=True))
    assert index.modalities_of("object-30") == tuple(sorted(MODALITIES))
    assert index.modalities_of("object-7") == ("image/hsc",)
    assert index.modalities_of("nobody") == ()
    assert index.objects_with("spectrum/desi") == sorted(f"object-{i}" for i in range(0, NUM_OBJECTS, 3))
    assert index.objects_with("spectrum/sdss") == []
    assert index.position_of("object-12") == (given.ra[12], given.dec[12])
    assert all(map(math.isnan, index.position_of("object-3")))
    for object_id, redshift in known.items():
        told = index.labels_of(object_id) if object_id in ("object-0", "object-1", "object-77") else None
        if told is not None:
            assert told == ({} if math.isnan(redshift) else {"scalar/redshift": redshift})
    assert index.labels_of("nobody") == {}
    found = index.search(queries(), 5)
    values = index.label_of_rows("scalar/redshift", found.row)
    np.testing.assert_array_equal(values, np.vectorize(known.get)(found.object_id))
    assert np.isnan(index.label_of_rows("scalar/redshift", np.array([[-1]]))).all()


def test_the_manifest_counts_what_is_there(index, given):
    manifest = index.manifest
    assert (len(index), manifest.num_rows, manifest.num_objects) == (len(given), len(given), NUM_OBJECTS)
    assert manifest.num_rows_of_modality == {name: given.modality.count(name) for name in sorted(MODALITIES)}
    assert index.modalities == tuple(sorted(MODALITIES))
    assert (manifest.model_id, manifest.space, manifest.dimension) == ("armillary-1", "aligned", 12)
    assert manifest.labels == ("scalar/redshift", "scalar/stellar_mass")
    assert set(manifest.metadata) == {"scalar/legacysurvey_r", "depth"}
    assert manifest.reason
    assert manifest.recall
    assert manifest.index_id.startswith(f"{manifest.name}-")


WRONG_NAMES = [
    (lambda i: i.vector("object-1599"), "no object 'object-1599' in the index; the nearest known is 'object-159'"),
    (lambda i: i.vector("object-1", "spectrum/desi"), r"has no 'spectrum/desi' in the index; it has \['image/hsc'\]"),
    (lambda i: i.vectors(["object-0", "object-1"], "spectrum/desi"), "object 'object-1' has no 'spectrum/desi'"),
    (lambda i: i.vectors(["object-0", "gone"], "spectrum/desi"), "no object 'gone'"),
    (lambda i: i.vectors(["object-0"], "spectrum/sdss"), r"no modality 'spectrum/sdss' in the index; it has \['image"),
    (lambda i: i.position_of("gone"), "no object 'gone'"),
    (lambda i: i.search(queries(), 3, target_modality="image/desi"), "no modality 'image/desi' in the index"),
    (lambda i: i.search(queries(), 3, survey="sdss"), r"no survey 'sdss' in the index; it has \['desi', 'hsc', 'leg"),
    (lambda i: i.search(queries(), 3, has_label="scalar/age"), "no label 'scalar/age'; it has"),
    (lambda i: i.search(queries(), 3, where={"scalar/z": (0.0, 1.0)}), "no metadata 'scalar/z'; it has"),
    (lambda i: i.label_of_rows("scalar/age", np.zeros((1, 1), np.int64)), "no label 'scalar/age'"),
]


@pytest.mark.parametrize("ask, message", WRONG_NAMES, ids=map(str, range(len(WRONG_NAMES))))
def test_unknown_names_are_errors_that_say_what_there_is(index, ask, message):
    with pytest.raises(LookupError, match=message):
        ask(index)


def test_the_nearest_known_id_shares_the_longest_beginning(index):
    assert index.nearest_id("object-42") == "object-42"
    assert index.nearest_id("object-42-again") == "object-42"
    assert index.nearest_id("object-1x").startswith("object-1")
    assert index.nearest_id("zebra").startswith("object-")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_queries_without_direction_or_of_another_width_are_refused(index, value):
    broken = queries()
    broken[2] = value
    with pytest.raises(EmbeddingIndexError, match="query 2 has no direction"):
        index.search(broken, 3)
    with pytest.raises(EmbeddingIndexError, match=r"shape \[queries, 12\], found \[5, 4\]"):
        index.search(queries()[:, :4], 3)
    with pytest.raises(EmbeddingIndexError, match="k must be at least 1, found 0"):
        index.search(queries(), 0)


def test_another_model_is_refused(index):
    index.require_model("armillary-1")
    with pytest.raises(EmbeddingIndexError, match=r"embeddings of model 'armillary-1'.*'armillary-2'"):
        index.require_model("armillary-2")


STRANGE_IDS = [
    'a"b',
    "a'b",
    "a\\b",
    "a%b",
    "a_b",
    "a\nb",
    "a\rb",
    "a\tb",
    "a\x0bb",
    "ä ö",
    "🔭 42",
    "a[1]",
    "{a}",
    "a or 1 == 1",
    "ab",
    "a",
]


def test_ids_of_any_letters_are_found_replaced_and_removed(engine):
    count = len(STRANGE_IDS)
    vectors = np.random.default_rng(1).normal(size=(count, 8)).astype(np.float16)
    table = EmbeddingTable(
        tuple(STRANGE_IDS), ("image/hsc",) * count, np.zeros(count), np.zeros(count), vectors, "aligned", "armillary-1"
    )
    index, _ = engine.make(table, {"object_id": STRANGE_IDS, "scalar/redshift": np.arange(count) / 7})
    units_of = unit_rows(table)
    for place, name in enumerate(STRANGE_IDS):
        np.testing.assert_allclose(index.vector(name), units_of[place], atol=1e-6)
        assert index.labels_of(name) == {"scalar/redshift": place / 7}
        assert index.nearest_id(name) == name
        assert index.nearest_id(f"{name}!").startswith(name)
    found = index.search(vectors.astype(np.float32), 1, exclude=["nobody"])
    assert found.object_id[:, 0].tolist() == STRANGE_IDS
    left = index.search(vectors[:1].astype(np.float32), count, exclude=STRANGE_IDS[1:5])
    assert set(left.object_id[0]) == {STRANGE_IDS[0], *STRANGE_IDS[5:]}
    index.remove(STRANGE_IDS[::2])
    assert index.objects_with("image/hsc") == sorted(STRANGE_IDS[1::2])


def small(ids, modality="image/hsc", seed=9, dimension=12, model_id="armillary-1", position=(5.0, 6.0)):
    count = len(ids)
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float16)
    ra, dec = (np.full(count, value) for value in position)
    return EmbeddingTable(tuple(ids), (modality,) * count, ra, dec, vectors, "aligned", model_id)


@pytest.fixture
def changeable(engine):
    table = sky_table(40)
    return engine.make(table, *numbers_of(table))[0]


def test_what_was_added_is_found_by_the_next_search(changeable):
    table = sky_table(40)
    more = small(["object-1", "new-1", "new-2"], "spectrum/desi")
    before = changeable.manifest.index_id
    changeable.add(
        more,
        {"object_id": ["new-1", "object-5"], "scalar/redshift": [0.25, 0.75]},
        {"object_id": ["new-1"], "depth": [77.0]},
    )
    found = changeable.search(more.vectors.astype(np.float32), 1, target_modality="spectrum/desi")
    assert found.object_id[:, 0].tolist() == ["object-1", "new-1", "new-2"]
    np.testing.assert_allclose(found.similarity[:, 0], 1, atol=1e-5)
    assert (len(changeable), changeable.manifest.num_objects) == (len(table) + 3, 42)
    assert changeable.manifest.num_rows_of_modality["spectrum/desi"] == table.modality.count("spectrum/desi") + 3
    assert changeable.modalities_of("object-1") == ("image/hsc", "spectrum/desi")
    assert changeable.labels_of("new-1") == {"scalar/redshift": 0.25}
    assert changeable.labels_of("object-5") == {"scalar/redshift": 0.75}
    assert changeable.labels_of("new-2") == {}
    deep = changeable.search(queries(1), 9, where={"depth": (76.0, 78.0)})
    assert pairs_of(deep, 0) == [("new-1", "spectrum/desi")]
    assert changeable.position_of("new-2") == (5.0, 6.0)
    assert set(changeable.search(queries(1), 9, cone=Cone(5.0, 6.0, 0.001)).object_id[0]) >= {"new-1", "new-2"}
    assert changeable.manifest.index_id != before


def test_an_added_row_takes_the_place_of_the_one_that_was_there(changeable):
    table = sky_table(40)
    told = changeable.labels_of("object-6")
    again = small(["object-6"], "image/hsc")
    changeable.add(again)
    assert len(changeable) == len(table)
    np.testing.assert_allclose(changeable.vector("object-6", "image/hsc"), unit_rows(again)[0], atol=1e-6)
    everything = changeable.search(again.vectors.astype(np.float32), len(table) + 1)
    assert pairs_of(everything, 0)[0] == ("object-6", "image/hsc")
    assert len(pairs_of(everything, 0)) == len(table)
    assert changeable.labels_of("object-6") == told == {"scalar/redshift": pytest.approx(36 / 40)}


def test_a_new_modality_may_be_added(changeable):
    changeable.add(small(["object-3", "other"], "spectrum/sdss"))
    assert "spectrum/sdss" in changeable.modalities
    assert changeable.objects_with("spectrum/sdss") == ["object-3", "other"]
    assert set(changeable.search(queries(1), 5, survey="sdss").object_id[0]) == {"object-3", "other"}


def test_removed_objects_are_gone_with_all_their_rows(changeable):
    table = sky_table(40)
    gone = {"object-0", "object-6", "object-7"}
    changeable.remove([*sorted(gone), "object-7"])
    left = [name not in gone for name in table.object_id]
    assert (len(changeable), changeable.manifest.num_objects) == (sum(left), 37)
    found = changeable.search(queries(2), len(table))
    expected = slow_search(table, queries(2)[0], len(table), np.array(left))[0]
    assert sorted(pairs_of(found, 0)) == sorted(expected)
    assert changeable.modalities_of("object-6") == ()
    assert changeable.labels_of("object-7") == {}
    with pytest.raises(LookupError, match="no object 'object-6'"):
        changeable.vector("object-6")
    changeable.add(small(["object-7"]))
    assert changeable.labels_of("object-7") == {}


def test_nothing_is_removed_if_one_object_is_not_there(changeable):
    with pytest.raises(LookupError, match=r"1 of 2 objects to remove are not in the index, the first: 'nobody'"):
        changeable.remove(["object-0", "nobody"])
    assert changeable.modalities_of("object-0") == tuple(sorted(MODALITIES))
    changeable.remove([])
    assert len(changeable) == len(sky_table(40))


WRONG_ADDITIONS = [
    ((small(["a"], model_id="armillary-2"),), "model_id 'armillary-1', those to add are of 'armillary-2'"),
    ((small(["a"], dimension=8),), "dimension 12, those to add are of 8"),
    ((small(["a", "a"]),), "object a has image/hsc twice"),
    ((small(["a"]), {"object_id": ["b"], "scalar/redshift": [0.1]}), "1 labelled objects have no embedding.*'b'"),
    ((small(["a"]), {"object_id": ["a", "a"], "scalar/redshift": [0.1, 0.2]}), "stands in two rows"),
    ((small(["a"]), {"object_id": ["a"], "scalar/redshift": ["far"]}), "must be a column of numbers"),
    ((small(["a"]), None, {"object_id": ["a"], "seeing": [1.0]}), "no metadata 'seeing'; it has"),
]


def test_wrong_additions_are_refused_and_change_nothing(changeable):
    for arguments, message in WRONG_ADDITIONS:
        with pytest.raises(EmbeddingIndexError, match=message):
            changeable.add(*arguments)
    zero = EmbeddingTable(
        ("a",), ("image/hsc",), np.zeros(1), np.zeros(1), np.zeros((1, 12), np.float16), "aligned", "armillary-1"
    )
    with pytest.raises(EmbeddingIndexError, match=r"object a, image/hsc.*finite and not zero"):
        changeable.add(zero)
    assert len(changeable) == len(sky_table(40))
    assert changeable.modalities_of("a") == ()


WRONG_BUILDS = [
    ((small(["a", "a"]),), "object a has image/hsc twice"),
    ((small([]),), "no embeddings to index"),
    ((small(["a"]), {"object_id": ["stranger"], "scalar/redshift": [0.1]}), "the first: 'stranger'"),
    ((small(["a"]), {"redshift": [0.1]}), "must have a column object_id"),
]


@pytest.mark.parametrize("arguments, message", WRONG_BUILDS, ids=["twice", "empty", "stranger", "no ids"])
def test_wrong_builds_are_refused(engine, arguments, message):
    with pytest.raises(EmbeddingIndexError, match=message):
        engine.make(*arguments)


def test_what_is_there_is_not_overwritten(engine):
    first, place = engine.make(small(["a", "b"]))
    with pytest.raises(EmbeddingIndexError, match="something already"):
        save_index(build_for(place, small(["c"])), place)
    assert open_index(place)[0].objects_with("image/hsc") == first.objects_with("image/hsc") == ["a", "b"]


def test_an_index_that_is_not_there_is_an_error(engine):
    with pytest.raises(EmbeddingIndexError, match=r"is this an index|there is no"):
        open_index(engine.new_place())


def test_predictors_are_kept_with_the_index(engine):
    told = {"scalar/redshift from image/hsc": NeighbourPredictor("scalar/redshift", k=7, model_id="armillary-1")}
    _, place = engine.make(small(["a", "b"]), predictors=told)
    assert open_index(place)[1] == told
    assert open_index(engine.make(small(["a"]))[1])[1] == {}


def test_shards_are_read_as_the_table_is(engine, tmp_path):
    given = sky_table(30)
    for name, part in (("a", slice(0, 20)), ("b", slice(20, len(given)))):
        write_embedding_shard(
            tmp_path / f"{name}.parquet",
            given.object_id[part],
            given.modality[part],
            given.vectors[part],
            model_id=given.model_id,
            space=given.space,
            ra=given.ra[part],
            dec=given.dec[part],
        )
    index, _ = engine.make(tmp_path)
    found = index.search(queries(), 5, exact=True)
    every = np.ones(len(given), bool)
    assert [pairs_of(found, q) for q in range(5)] == [slow_search(given, v, 5, every)[0] for v in queries()]
    assert index.position_of("object-7") == (given.ra[7], given.dec[7])


def test_recall_holds_where_filters_let_few_rows_pass(engine):
    """Clusters, many rows, and filters that let 30 %, 3 % and 0.5 % of them pass."""
    rng = np.random.default_rng(3)
    count = 3000
    centres = rng.normal(size=(30, 24))
    vectors = (centres[rng.integers(0, 30, count)] + 0.5 * rng.normal(size=(count, 24))).astype(np.float16)
    ids = [f"o{i}" for i in range(count)]
    table = EmbeddingTable(
        tuple(ids), ("image/hsc",) * count, np.zeros(count), np.zeros(count), vectors, "aligned", "armillary-1"
    )
    share = rng.random(count)
    index, _ = engine.make(table, None, {"object_id": ids, "share": share})
    asked = vectors[:40].astype(np.float32)
    for most in (1.0, 0.3, 0.03, 0.005):
        found = index.search(asked, 10, where={"share": (None, most)})
        expected = [slow_search(table, query, 10, share <= most)[0] for query in asked]
        hits = sum(len(set(pairs_of(found, q)) & set(pairs)) for q, pairs in enumerate(expected))
        assert hits >= 0.95 * sum(map(len, expected)), most


def in_process(program, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    text = f"import sys\nsys.path.insert(0, {str(HERE)!r})\n" + textwrap.dedent(program)
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, env=environment)


def other_processes_are_asked(engine):
    """A process costs seconds of imports."""
    if engine.name == "faiss" and engine.index_type == "ivf":
        pytest.skip("FAISS's files are written and read in one way, which the flat type tests")


def give_up(index):
    """milvus-lite lets in one process at a time."""
    if hasattr(index, "close"):
        index.close()


def test_another_process_finds_the_same(engine):
    other_processes_are_asked(engine)
    given = sky_table(40)
    index, place = engine.make(given, *numbers_of(given))
    index.add(small(["new"]))
    index.remove(["object-3"])
    filters = [{}, {"cone": [120.0, 10.0, 80.0]}, {"has_label": "scalar/redshift"}]
    asked = [{**f, "cone": Cone(*f["cone"])} if "cone" in f else f for f in filters]
    expected = [index.search(queries(), 6, **f) for f in asked]
    manifest = index.manifest
    give_up(index)
    process = in_process(f"""
        import json
        from index_engines import queries
        from armillary.serving.index.cone import Cone
        from armillary.serving.index.opening import open_index
        index, _ = open_index({place!r})
        for filters in {filters!r}:
            if "cone" in filters:
                filters["cone"] = Cone(*filters["cone"])
            found = index.search(queries(), 6, **filters)
            print(json.dumps([found.object_id.tolist(), found.modality.tolist()]))
        manifest = index.manifest
        print(json.dumps([len(index), manifest.num_objects, manifest.index_id, index.labels_of("object-8")]))
    """)
    lines = [json.loads(line) for line in process.communicate()[0].splitlines()]
    assert process.returncode == 0
    for found, line in zip(expected, lines, strict=False):
        assert [found.object_id.tolist(), found.modality.tolist()] == line
    assert lines[-1][:3] == [manifest.num_rows, manifest.num_objects, manifest.index_id]
    assert lines[-1][3] == {"scalar/redshift": pytest.approx(38 / 40)}


def test_what_was_acknowledged_survives_a_kill(engine):
    other_processes_are_asked(engine)
    index, place = engine.make(small(["first"], dimension=12))
    give_up(index)
    process = in_process(f"""
        import numpy as np
        from test_index_suite import small
        from armillary.serving.index.opening import open_index
        index, _ = open_index({place!r})
        for number in range(1000):
            index.add(small([f"added-{{number}}-{{i}}" for i in range(20)], seed=number))
            index.remove([f"added-{{number}}-0"])
            print(number, flush=True)
    """)
    acknowledged = -1
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged == 2:
            break
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    index, _ = open_index(place)
    kept = set(index.objects_with("image/hsc"))
    for number in range(acknowledged + 1):
        assert {f"added-{number}-{i}" for i in range(1, 20)} <= kept
        assert f"added-{number}-0" not in kept
        again = small(["x"] * 20, seed=number)
        found = index.search(again.vectors[1:].astype(np.float32), 1)
        assert found.object_id[:, 0].tolist() == [f"added-{number}-{i}" for i in range(1, 20)]
    assert index.manifest.num_objects == len(kept) == len(index)
    index.add(small(["after"]))
    assert index.modalities_of("after") == ("image/hsc",)


@pytest.mark.slow
def test_a_server_that_was_killed_has_all_that_it_acknowledged(server, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, server.token)
    engine = Engine("server", server.url, "flat")
    index, place = engine.make(sky_table(40), place=f"{server.url}#killed")
    index.add(small(["a", "b"], seed=1))
    index.remove(["object-0"])
    server.kill()
    server.start()
    index, _ = open_index(place)
    table = sky_table(40)
    assert len(index) == len(table) + 2 - table.object_id.count("object-0")
    np.testing.assert_allclose(index.vector("b"), unit_rows(small(["a", "b"], seed=1))[1], atol=1e-6)
    assert index.modalities_of("object-0") == ()


@pytest.mark.slow
def test_a_server_lets_nobody_in_without_its_token(server, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "root:guess")
    with pytest.raises(EmbeddingIndexError, match=f"cannot be opened.*{TOKEN_VARIABLE}") as caught:
        open_index(f"{server.url}#any")
    assert "guess" not in str(caught.value)
