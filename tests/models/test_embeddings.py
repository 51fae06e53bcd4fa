import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from armillary.models.embeddings import (
    Embeddings,
    EmbeddingsError,
    read_embedding_shards,
    write_embedding_shard,
)


def vectors(rows=5, dimension=8, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)


def write(path, rows=5, dimension=8, model_id="armillary-1", space="aligned", prefix="o", **fields):
    given = vectors(rows, dimension)
    write_embedding_shard(
        path, [f"{prefix}{i}" for i in range(rows)], "image/hsc", given, model_id=model_id, space=space, **fields
    )
    return given


def test_a_shard_holds_what_was_written(tmp_path):
    given = write(tmp_path / "a.parquet", ra=np.arange(5.0), dec=-np.arange(5.0))
    table = read_embedding_shards(tmp_path)
    assert table.object_id == ("o0", "o1", "o2", "o3", "o4")
    assert table.modality == ("image/hsc",) * 5
    assert (table.model_id, table.space) == ("armillary-1", "aligned")
    np.testing.assert_array_equal(table.vectors, given.astype(np.float16))
    np.testing.assert_array_equal(table.ra, np.arange(5.0))
    np.testing.assert_array_equal(table.dec, -np.arange(5.0))


def test_the_file_has_the_published_schema(tmp_path):
    write(tmp_path / "a.parquet", dimension=8)
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema.names == ["object_id", "ra", "dec", "modality", "vector"]
    assert schema.field("vector").type == pa.list_(pa.float16(), 8)
    assert b'"model_id": "armillary-1"' in schema.metadata[b"armillary"]


def test_shards_of_a_folder_join_in_order_of_name(tmp_path):
    write(tmp_path / "b.parquet", prefix="b", rows=2)
    write(tmp_path / "a.parquet", prefix="a", rows=3)
    assert read_embedding_shards(tmp_path).object_id == ("a0", "a1", "a2", "b0", "b1")


@pytest.mark.parametrize("difference", [{"model_id": "armillary-2"}, {"space": "encoder"}, {"dimension": 4}])
def test_shards_that_disagree_are_refused_by_name(tmp_path, difference):
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", **difference)
    with pytest.raises(EmbeddingsError, match=rf"b\.parquet: {next(iter(difference))} is"):
        read_embedding_shards(tmp_path)


def test_a_folder_without_shards_is_an_error(tmp_path):
    with pytest.raises(EmbeddingsError, match="no embedding shard"):
        read_embedding_shards(tmp_path)


def test_other_parquet_files_are_refused(tmp_path):
    pq.write_table(pa.table({"object_id": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(EmbeddingsError, match="not an embedding shard"):
        read_embedding_shards(tmp_path)


def test_a_torn_shard_is_refused(tmp_path):
    write(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(EmbeddingsError, match="cannot be read"):
        read_embedding_shards(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_vectors_that_float16_cannot_hold_are_refused_and_leave_no_file(tmp_path, value):
    given = vectors()
    given[3, 2] = value
    with pytest.raises(EmbeddingsError, match="object o3"):
        write_embedding_shard(
            tmp_path / "a.parquet", [f"o{i}" for i in range(5)], "image/hsc", given, model_id="m", space="aligned"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_shard_and_no_partial_file(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", rows=5)

    def disk_full(table, where, **options):
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", disk_full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "a.parquet", rows=2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    assert len(read_embedding_shards(tmp_path)) == 5


def test_embeddings_must_agree_in_length_and_name_a_space():
    with pytest.raises(EmbeddingsError, match="modalities must hold one row"):
        Embeddings(("a", "b"), torch.zeros(2, 3), "aligned", "m", (("image/hsc",),))
    with pytest.raises(EmbeddingsError, match="space must be one of"):
        Embeddings(("a",), torch.zeros(1, 3), "latent", "m", (("image/hsc",),))


def test_embeddings_give_float32_numpy():
    embeddings = Embeddings(("a",), torch.ones(1, 3, dtype=torch.bfloat16), "encoder", "m", (("image/hsc",),))
    assert embeddings.numpy().dtype == np.float32
    assert embeddings.numpy().shape == (1, 3)
