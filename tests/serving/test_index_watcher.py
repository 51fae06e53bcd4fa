"""Replicas look for a new index by themselves: it is searched when it is there and whole, and not before."""

import shutil

import pytest
from fake_model import FakeModel, embedding_table, images

from armillary.serving.app import create_app
from armillary.serving.index.embedding_index import EmbeddingIndex, EmbeddingIndexError
from armillary.serving.index.opening import open_index
from armillary.serving.index.watching import IndexWatcher


@pytest.fixture
def place(index_folder, tmp_path):
    return shutil.copytree(index_folder, tmp_path / "index")


@pytest.fixture
def service(model, place):
    """A server of the index at `place`, for tests to `reload`."""
    service = create_app(model, *open_index(place)).state.service
    service.reopen = lambda: open_index(place)
    return service


def put(place, folder):
    """Put an index folder in the place of another."""
    place.rename(place.with_name(f"before-{folder.name}"))
    folder.rename(place)


def new_index(folder, count):
    EmbeddingIndex.build(embedding_table(FakeModel(), [images(count)])).save(folder)
    return folder


def test_an_index_is_opened_anew_when_it_has_changed_and_only_then(service, place, tmp_path):
    watcher, opened = IndexWatcher(place), []

    def reload():
        opened.append(service.reload().manifest.num_objects)

    watcher.look(reload)
    assert opened == []
    put(place, new_index(tmp_path / "smaller", 30))
    watcher.look(reload)
    watcher.look(reload)
    assert opened == [30]
    EmbeddingIndex.load(place).remove(["object-3"])
    watcher.look(reload)
    assert opened == [30, 29]


def test_a_damaged_index_is_said_once_and_searched_as_soon_as_it_is_mended(service, place, tmp_path, caplog):
    watcher, before = IndexWatcher(place), service.index.manifest.index_id
    fresh = new_index(tmp_path / "fresh", 30)
    vectors = next(fresh.glob("base-*/vectors.npy"))
    whole = vectors.read_bytes()
    vectors.write_bytes(whole[:-1])
    put(place, fresh)
    for _ in range(3):
        watcher.look(service.reload)
    assert service.index.manifest.index_id == before
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "SHA-256" in caplog.text
    next(place.glob("base-*/vectors.npy")).write_bytes(whole)
    watcher.look(service.reload)
    assert service.index.manifest.num_objects == 30


def test_there_must_be_an_index_to_watch(tmp_path):
    with pytest.raises(EmbeddingIndexError, match="is this an index"):
        IndexWatcher(tmp_path)
