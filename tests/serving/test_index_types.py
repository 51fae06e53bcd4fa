"""The kinds of search structure: which is chosen, that each finds what it promises, that files are shared."""

import json
from pathlib import Path

import numpy as np
import pytest

from armillary.models.embeddings import EmbeddingTable, open_shards, write_embedding_shard
from armillary.serving.index import building as index_building
from armillary.serving.index.cone import Cone
from armillary.serving.index.embedding_index import EmbeddingIndex, EmbeddingIndexError
from armillary.serving.index.index_types import bytes_per_row, choose_type
from armillary.serving.index.protocol import SearchIndex

IMAGE, SPECTRUM = "image/hsc", "spectrum/desi"
COUNT, DIMENSION = 6000, 24
MAGNITUDE = "scalar/legacysurvey_r"


def clustered(count, seed):
    """Images and spectra of `count` objects in overlapping clusters; the magnitude follows the cluster."""
    centres = np.random.default_rng(0).normal(size=(60, DIMENSION))
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, len(centres), count)
    latent = centres[cluster] + 0.8 * rng.normal(size=(count, DIMENSION))
    offset = np.random.default_rng(1).normal(size=(2, DIMENSION)) * 0.7
    views = [latent + 0.3 * rng.normal(size=latent.shape) + o for o in offset]
    return [view.astype(np.float16) for view in views], 16 + cluster / 10 + rng.uniform(0, 0.5, count)


def made_table():
    views, magnitude = clustered(COUNT, 2)
    rng = np.random.default_rng(3)
    ra, dec = rng.uniform(0, 360, COUNT), np.degrees(np.arcsin(rng.uniform(-1, 1, COUNT)))
    ids = tuple(f"object-{i}" for i in range(COUNT))
    table = EmbeddingTable(
        object_id=ids * 2,
        modality=(IMAGE,) * COUNT + (SPECTRUM,) * COUNT,
        ra=np.tile(ra, 2),
        dec=np.tile(dec, 2),
        vectors=np.concatenate(views),
        space="aligned",
        model_id="armillary-1",
    )
    return table, {"object_id": list(ids), MAGNITUDE: magnitude}


@pytest.fixture(scope="module")
def made():
    return made_table()


@pytest.fixture(scope="module", params=["ivf", "ivf_sq8", "ivf_rabitq", "hnsw"])
def saved(request, made, tmp_path_factory):
    """Folder of an index of each type, built with small limits so that they are searched, not passed by."""
    patch = pytest.MonkeyPatch()
    patch.setattr("armillary.serving.index.part.EXACT_ROWS", 100)
    table, metadata = made
    folder = tmp_path_factory.mktemp(request.param) / "index"
    EmbeddingIndex.build(table, metadata=metadata, index_type=request.param).save(folder)
    yield folder
    patch.undo()


def recall(index, queries, **filters):
    found = index.search(queries, 10, **filters)
    true = index.search(queries, 10, exact=True, **filters)
    assert found.row.shape == true.row.shape
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.row.tolist(), true.row.tolist(), strict=True)])


FILTERS = {
    "none": {},
    "tenth": {"where": {MAGNITUDE: (17.0, 17.6)}},
    "fiftieth": {"where": {MAGNITUDE: (17.0, 17.1)}},
    "bright": {"where": {MAGNITUDE: (None, 16.5)}},
    "cone": {"cone": Cone(100.0, -20.0, 40.0)},
}


@pytest.mark.parametrize("target", [IMAGE, SPECTRUM, None])
@pytest.mark.parametrize("name", FILTERS)
def test_recall_holds_within_and_across_modalities_and_under_filters(saved, name, target):
    index = EmbeddingIndex.load(saved)
    for view in clustered(150, 9)[0]:
        assert recall(index, view.astype(np.float32), target_modality=target, **FILTERS[name]) >= 0.95


def test_the_manifest_tells_the_recall_that_a_plain_count_finds(saved):
    index = EmbeddingIndex.load(saved)
    told = json.loads((saved / "manifest.json").read_text())["parts"]
    assert [part["modality"] for part in told] == [IMAGE, SPECTRUM]
    for part, other in zip(told, (SPECTRUM, IMAGE), strict=True):
        by_share = part["recall"]["by_share_that_passes"]
        assert set(by_share["1.0"]) == {"same_modality", "cross_modal"}
        assert min(value for row in by_share.values() for value in row.values()) >= 0.95
        assert min(value for row in part["recall"]["by_range_of"][MAGNITUDE].values() for value in row.values()) >= 0.95
        ids = index.objects_with(other)[::20]
        mine = recall(index, index.vectors(ids, other), target_modality=part["modality"])
        assert mine == pytest.approx(by_share["1.0"]["cross_modal"], abs=0.03)


def test_a_mapped_index_finds_what_one_in_memory_finds(saved):
    mapped, whole = (EmbeddingIndex.load(saved, verify=False, memory_map=flag) for flag in (True, False))
    queries = clustered(50, 10)[0][0].astype(np.float32)
    for filters in FILTERS.values():
        np.testing.assert_array_equal(
            mapped.search(queries, 10, **filters).row, whole.search(queries, 10, **filters).row
        )
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(saved) in line]
    assert any("part-0.faiss" in line for line in lines)
    assert any("vectors.npy" in line for line in lines)


def test_lists_made_on_disk_find_the_same(made, tmp_path, monkeypatch):
    monkeypatch.setattr("armillary.serving.index.part.EXACT_ROWS", 100)
    monkeypatch.setattr(index_building, "BLOCK_ROWS", 500)
    table, _ = made
    memory_gb = 0.4 * len(table) * bytes_per_row("ivf_sq8", DIMENSION) / 1e9
    small = EmbeddingIndex.build(table, index_type="ivf_sq8", max_memory_gb=memory_gb)
    assert "lists are made on disk" in small.manifest.reason
    small.save(tmp_path / "index")
    assert (tmp_path / "index" / "base-0" / "part-1.lists").exists()
    loaded, plain = EmbeddingIndex.load(tmp_path / "index"), EmbeddingIndex.build(table, index_type="ivf_sq8")
    queries = clustered(50, 10)[0][0].astype(np.float32)
    for one in (small, loaded):
        np.testing.assert_array_equal(one.search(queries, 10).row, plain.search(queries, 10).row)
    loaded.add(
        EmbeddingTable(("new",), (IMAGE,), np.zeros(1), np.zeros(1), table.vectors[:1], "aligned", "armillary-1")
    )
    loaded.compact()
    assert len(loaded) == 2 * COUNT + 1
    assert recall(loaded, queries) >= 0.95


def test_the_type_follows_size_and_memory_and_says_why():
    row = bytes_per_row("ivf_sq8", 512)
    assert choose_type(50_000, 512, memory=1e12).index_type == "flat"
    large = choose_type(10**6, 512, memory=1.1e6 * row)
    assert (large.index_type, large.on_disk) == ("ivf_sq8", False)
    assert "0.52 GB" in large.reason
    tight = choose_type(10**6, 512, memory=0.5e6 * row)
    assert (tight.index_type, tight.on_disk) == ("ivf_rabitq", False)
    assert "more than the 0.26 GB allowed" in tight.reason
    tightest = choose_type(10**9, 512, memory=1e9)
    assert (tightest.index_type, tightest.on_disk) == ("ivf_rabitq", True)
    with pytest.raises(EmbeddingIndexError, match="found 'annoy'"):
        choose_type(10, 512, wanted="annoy", memory=1e9)


def test_surveys_and_ranges_filter_as_a_plain_loop_does(made):
    table, metadata = made
    index = EmbeddingIndex.build(table, metadata=metadata)
    magnitude = dict(zip(metadata["object_id"], metadata[MAGNITUDE], strict=True))
    queries = clustered(5, 11)[0][0].astype(np.float32)
    low, high = sorted(magnitude.values())[100], sorted(magnitude.values())[160]
    found = index.search(queries, 500, survey="desi", where={MAGNITUDE: (low, high)})
    expected = {name for name, value in magnitude.items() if low <= value <= high}
    assert len(expected) == 61
    assert all(set(ids) == expected for ids in found.object_id)
    assert set(found.modality.ravel()) == {SPECTRUM}
    with pytest.raises(LookupError, match=r"no survey 'sdss' in the index; it has \['desi', 'hsc'\]"):
        index.search(queries, 5, survey="sdss")
    with pytest.raises(LookupError, match="no metadata 'scalar/redshift'"):
        index.search(queries, 5, where={"scalar/redshift": (0.0, 1.0)})


def test_objects_whose_metadata_are_unknown_pass_no_range(made):
    table, metadata = made
    known = {"object_id": metadata["object_id"][:10], MAGNITUDE: metadata[MAGNITUDE][:10]}
    index = EmbeddingIndex.build(table, metadata=known)
    found = index.search(np.ones((1, DIMENSION), np.float32), 100, where={MAGNITUDE: (None, None)})
    assert set(found.object_id[0]) == set(metadata["object_id"][:10])


def test_shards_are_read_in_blocks_whatever_their_order(made, tmp_path):
    """Rows of both modalities in turn give the same index as a table that has one after the other."""
    table, metadata = made
    order = np.arange(2 * COUNT).reshape(2, COUNT).T.ravel()
    for number, part in enumerate(np.array_split(order, 3)):
        write_embedding_shard(
            tmp_path / "shards" / f"{number}.parquet",
            [table.object_id[i] for i in part],
            [table.modality[i] for i in part],
            table.vectors[part],
            model_id=table.model_id,
            space=table.space,
            ra=table.ra[part],
            dec=table.dec[part],
        )
    whole = EmbeddingIndex.build(table, metadata=metadata)
    sizes = [len(block) for block in open_shards(tmp_path / "shards").blocks(700)]
    assert (max(sizes), sum(sizes)) == (700, 2 * COUNT)
    index = EmbeddingIndex.build(tmp_path / "shards", metadata=metadata)
    queries = clustered(20, 12)[0][0].astype(np.float32)
    np.testing.assert_array_equal(index.search(queries, 7).row, whole.search(queries, 7).row)
    ids = index.objects_with(SPECTRUM)
    np.testing.assert_array_equal(index.vectors(ids, SPECTRUM), whole.vectors(ids, SPECTRUM))
    assert index.position_of("object-77") == (table.ra[77], table.dec[77])


def test_the_index_has_the_common_surface(made):
    assert isinstance(EmbeddingIndex.build(made[0]), SearchIndex)
