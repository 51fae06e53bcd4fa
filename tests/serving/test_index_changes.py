"""Additions and removals of a saved index: what is found after them, what survives a killed process, who may write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_index import table

from armillary.models.embeddings import EmbeddingTable
from armillary.serving.index import changes as index_changes
from armillary.serving.index import files as index_files
from armillary.serving.index.embedding_index import EmbeddingIndex, EmbeddingIndexError

IMAGE, SPECTRUM = "image/hsc", "spectrum/desi"


def rows(names, modality=IMAGE, seed=1, dimension=16, **changes):
    rng = np.random.default_rng(seed)
    fields = {
        "object_id": tuple(names),
        "modality": (modality,) * len(names),
        "ra": rng.uniform(0, 360, len(names)),
        "dec": rng.uniform(-80, 80, len(names)),
        "vectors": rng.normal(size=(len(names), dimension)).astype(np.float16),
        "space": "aligned",
        "model_id": "armillary-1",
    }
    return EmbeddingTable(**{**fields, **changes})


@pytest.fixture
def folder(tmp_path):
    given = table()
    labels = {"object_id": ["object-0", "object-1", "object-2"], "scalar/redshift": [0.1, 0.2, 0.3]}
    metadata = {"object_id": sorted(set(given.object_id)), "scalar/legacysurvey_r": np.linspace(16, 22, 200)}
    EmbeddingIndex.build(given, labels, metadata=metadata).save(tmp_path / "index")
    return tmp_path / "index"


def plain_content(index):
    """Everything that is in an index, by object and modality."""
    return {
        (object_id, modality): (
            index.vector(object_id, modality).tobytes(),
            repr(index.position_of(object_id)),  # NaN equals NaN so
            index.labels_of(object_id),
        )
        for modality in index.modalities
        for object_id in index.objects_with(modality)
    }


def assert_searches_all_it_holds(index):
    """Each row finds itself, and one search finds as many rows as the manifest counts."""
    manifest = index.manifest
    every = index.search(np.ones((1, manifest.dimension), np.float32), len(index) + 10)
    found = set(zip(every.object_id[0], every.modality[0], strict=True))
    assert len(found) == every.row.shape[1] == len(index) == sum(manifest.num_rows_of_modality.values())
    assert len({object_id for object_id, _ in found}) == manifest.num_objects
    assert found == set(plain_content(index))
    for modality in index.modalities:
        ids = index.objects_with(modality)
        nearest = index.search(index.vectors(ids, modality), 1, target_modality=modality)
        assert nearest.object_id[:, 0].tolist() == ids


def test_added_rows_are_found_at_once_and_by_whoever_loads(folder):
    index = EmbeddingIndex.load(folder)
    new = rows(["object-1", "new-1", "new-2"], SPECTRUM)
    index.add(
        new,
        {"object_id": ["new-1", "object-0"], "scalar/redshift": [0.5, 0.6], "scalar/mass": [10.0, np.nan]},
        {"object_id": ["new-1"], "scalar/legacysurvey_r": [20.5]},
    )
    for now in (index, EmbeddingIndex.load(folder)):
        assert (len(now), now.manifest.num_objects, now.manifest.version) == (303, 202, 1)
        assert now.modalities_of("object-1") == (IMAGE, SPECTRUM)
        unit = new.vectors.astype(np.float64) / np.linalg.norm(new.vectors.astype(np.float64), axis=1, keepdims=True)
        np.testing.assert_allclose(now.vectors(["object-1", "new-2"], SPECTRUM), unit[[0, 2]], atol=1e-6)
        assert now.labels_of("new-1") == {"scalar/redshift": 0.5, "scalar/mass": 10.0}
        assert now.labels_of("object-0") == {"scalar/redshift": 0.6}
        assert now.labels_of("object-1") == {"scalar/redshift": 0.2}
        assert now.position_of("new-1") == (new.ra[1], new.dec[1])
        # The magnitude of an object that is there holds for its new rows too.
        bright = now.search(unit.astype(np.float32), 300, where={"scalar/legacysurvey_r": (20.0, 21.0)})
        assert {"new-1"} <= set(bright.object_id[0])
        known = now.search(unit.astype(np.float32), 400, has_label="scalar/redshift")
        assert set(known.object_id[0]) == {"object-0", "object-1", "object-2", "new-1"}
        assert_searches_all_it_holds(now)


def test_a_row_that_is_there_is_replaced(folder):
    index = EmbeddingIndex.load(folder)
    for seed in (1, 2):
        new = rows(["object-4", "object-7"], IMAGE, seed)
        index.add(new)
        unit = new.vectors[0].astype(np.float64)
        np.testing.assert_allclose(index.vector("object-4", IMAGE), unit / np.linalg.norm(unit), atol=1e-6)
        assert (len(index), index.manifest.num_objects) == (300, 200)
        assert_searches_all_it_holds(index)


def test_removed_objects_are_gone_with_their_labels(folder):
    index = EmbeddingIndex.load(folder)
    index.add(rows(["new-1"]))
    index.remove(["object-0", "new-1", "object-199"])
    for now in (index, EmbeddingIndex.load(folder)):
        assert (len(now), now.manifest.num_objects) == (297, 198)
        assert now.modalities_of("object-0") == ()
        assert now.labels_of("object-0") == {}
        with pytest.raises(LookupError, match="no object 'object-199' in the index; the nearest known is 'object-19"):
            now.vector("object-199")
        assert_searches_all_it_holds(now)
    index.add(rows(["object-0"]))
    assert index.labels_of("object-0") == {}
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(LookupError, match="1 of 2 objects to remove are not in the index, the first: 'nobody'"):
        index.remove(["object-3", "nobody"])
    assert (folder / "manifest.json").read_bytes() == before
    assert len(index.rows_of("object-3")) == 1


def test_a_compacted_index_holds_the_same_without_changes(folder):
    index = EmbeddingIndex.load(folder)
    index.add(rows(["object-1", "new-1"], SPECTRUM), {"object_id": ["new-1"], "scalar/redshift": [0.5]})
    index.remove(["object-0", "object-2"])
    content, asked = plain_content(index), rows(["q"] * 5, seed=9).vectors.astype(np.float32)
    found = index.search(asked, 20, where={"scalar/legacysurvey_r": (16.0, 20.0)}).object_id.tolist()
    index.compact()
    for now in (index, EmbeddingIndex.load(folder)):
        assert now.manifest.changes == ()
        assert plain_content(now) == content
        assert now.search(asked, 20, where={"scalar/legacysurvey_r": (16.0, 20.0)}).object_id.tolist() == found
        assert_searches_all_it_holds(now)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "base-3", "manifest.json"]
    version = index.manifest.version
    index.compact()
    assert index.manifest.version == version


@pytest.mark.parametrize("limit", ["TAIL_LIMIT", "MOST_CHANGES"])
def test_many_changes_become_a_new_base(folder, monkeypatch, limit):
    monkeypatch.setattr(index_changes, limit, 3)
    index = EmbeddingIndex.load(folder)
    for call in range(6):
        index.add(rows([f"new-{call}-0", f"new-{call}-1"], seed=call), {"object_id": ["object-9"], "scalar/z": [call]})
    assert index.manifest.base != "base-0"
    assert len(index.manifest.changes) <= 3
    assert (len(index), index.labels_of("object-9")) == (312, {"scalar/z": 5.0})
    assert_searches_all_it_holds(EmbeddingIndex.load(folder))


def test_what_does_not_fit_is_refused_and_changes_nothing(folder):
    index = EmbeddingIndex.load(folder)
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(EmbeddingIndexError, match="model_id 'armillary-1', those to add are of 'armillary-2'"):
        index.add(rows(["a"], model_id="armillary-2"))
    with pytest.raises(EmbeddingIndexError, match="space 'aligned', those to add are of 'encoder'"):
        index.add(rows(["a"], space="encoder"))
    with pytest.raises(EmbeddingIndexError, match="dimension 16, those to add are of 8"):
        index.add(rows(["a"], dimension=8))
    with pytest.raises(EmbeddingIndexError, match="object a has image/hsc twice"):
        index.add(rows(["a", "a"]))
    with pytest.raises(EmbeddingIndexError, match=r"no metadata 'scalar/seeing'; it has \['scalar/legacysurvey_r'\]"):
        index.add(rows(["a"]), metadata={"object_id": ["a"], "scalar/seeing": [1.0]})
    with pytest.raises(EmbeddingIndexError, match="the first: 'stranger'"):
        index.add(rows(["a"]), {"object_id": ["stranger"], "scalar/redshift": [1.0]})
    assert (folder / "manifest.json").read_bytes() == before
    assert len(EmbeddingIndex.load(folder)) == len(index) == 300
    with pytest.raises(EmbeddingIndexError, match="not saved yet"):
        EmbeddingIndex.build(table()).add(rows(["a"]))


def test_one_process_changes_an_index_at_a_time(folder):
    index = EmbeddingIndex.load(folder)
    with index_files.locked(folder), pytest.raises(EmbeddingIndexError, match="another process is changing this index"):
        index.add(rows(["a"]))
    index.add(rows(["a"]))


def test_a_writer_starts_from_what_others_wrote_and_a_reader_follows(folder):
    first, second, reader = (EmbeddingIndex.load(folder) for _ in range(3))
    first.add(rows(["a"]))
    second.remove(["object-5"])
    second.add(rows(["b"]))
    assert not second.modalities_of("object-5")
    assert second.modalities_of("a") == (IMAGE,)
    assert len(reader) == 300
    assert reader.refresh()
    assert plain_content(reader) == plain_content(second)
    assert not reader.refresh()
    second.compact()
    assert first.refresh()
    assert plain_content(first) == plain_content(second)


def run_killed(what, folder, num_points):
    script = Path(__file__).parent / "kill_index_writers.py"
    words = [sys.executable, str(script), what, str(folder), str(num_points)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [one["status"] for one in told["seen"]] == [-9] * (len(told["seen"]) - 1) + [0]
    assert len(told["seen"]) > 4
    assert "broken" not in [one["held"] for one in told["seen"]]
    assert told["hidden"] == []
    return told


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_or_the_whole_index(tmp_path):
    told = run_killed("build", tmp_path / "index", 6)
    held = [one["held"] for one in told["seen"]]
    assert held[0] is None
    assert {one["rows"] for one in held if one is not None} == {300}
    assert told["left"] == ["base-0", "manifest.json"]


def test_what_was_acknowledged_survives_kills_at_any_moment(tmp_path):
    told = run_killed("add", tmp_path / "index", 8)
    for one in told["seen"]:
        assert one["held"]["found"] == one["held"]["names"]
    names, labelled = (told["seen"][-1]["held"][key] for key in ("names", "labelled"))
    assert told["acknowledged"]
    for word in told["acknowledged"]:
        kind, _, number = word.partition("-")
        if kind == "added":
            assert word in names
            assert word in labelled
        else:
            assert f"o-{number}" not in names
    folders = [name for name in told["left"] if name.startswith("change-")]
    assert len(folders) == json.loads((tmp_path / "index" / "manifest.json").read_text())["version"]


@pytest.mark.slow
def test_a_killed_compaction_changes_nothing_that_is_found(tmp_path):
    told = run_killed("compact", tmp_path / "index", 6)
    first = told["seen"][0]["held"]
    assert first["rows"] == 299
    for one in told["seen"]:
        assert sorted(one["held"]["names"]) == sorted(first["names"])
        assert one["held"]["found"] == one["held"]["names"]
    assert told["left"] == [".lock", "base-3", "manifest.json"]
