"""Embeddings: the vectors a foundation model gives to objects, in memory and as shards on disk.

What a model returns (`Embeddings`) and what an index is built from (`EmbeddingTable`, read from Parquet shards) name
the model and the space of their vectors, so that vectors of two models are never compared by mistake.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float16, Float64
from torch import Tensor

SPACES = ("encoder", "aligned")
"""`encoder`: pooled states of the encoder. `aligned`: unit vectors of the contrastive space, comparable by cosine."""

TOKEN_SPACE = "encoder tokens"
"""The vectors of tokens, not pooled; what follows in a space's name says which (`token_embeddings.py`)."""

_METADATA_KEY = b"armillary"
_COLUMNS = ("object_id", "ra", "dec", "modality", "vector")


class EmbeddingsError(ValueError):
    """Embeddings do not fit together, or a shard is not one. The message names the file and the field."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors of B objects, float32, from one model and in one space.

    `space` is `encoder` or `aligned` (unit length), or says of which tokens the vectors stand side by side.
    `modalities` names, for each object, those its vector came from.
    Raises EmbeddingsError where the fields disagree in length.
    """

    object_id: tuple[str, ...]
    vectors: Float[Tensor, "B D"]
    space: str
    model_id: str
    modalities: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.space.startswith(TOKEN_SPACE):
            check_space(self.space)
        lengths = {"vectors": self.vectors.shape[0], "modalities": len(self.modalities)}
        for name, length in lengths.items():
            if length != len(self.object_id):
                raise EmbeddingsError(
                    f"{name} must hold one row for each of {len(self.object_id)} objects, not {length}"
                )

    def __len__(self) -> int:
        return len(self.object_id)

    def rows(self, places: Sequence[int]) -> "Embeddings":
        """Some of the objects, by their places."""
        names = [(self.object_id[place], self.modalities[place]) for place in places]
        vectors = self.vectors[list(places)]
        object_id, modalities = tuple(i for i, _ in names), tuple(m for _, m in names)
        return Embeddings(object_id, vectors, self.space, self.model_id, modalities)

    def numpy(self) -> np.ndarray:
        """The vectors as float32 [B, D] on the CPU."""
        return self.vectors.detach().cpu().float().numpy()

    def table(self) -> Any:
        """An astropy Table: `object_id`, `modalities` (joined by +) and `embedding` [D]; space and model in `meta`."""
        from astropy.table import Table

        names = np.array(["+".join(one) for one in self.modalities], str)
        columns = {"object_id": np.array(self.object_id, str), "modalities": names, "embedding": self.numpy()}
        return Table(columns, meta={"space": self.space, "model_id": self.model_id})


@dataclass(frozen=True, eq=False)
class EmbeddingTable:
    """Stored vectors: one row for each (object, modality), R rows in all.

    `ra` and `dec` in degrees, ICRS, NaN where unknown; vectors as stored, float16. Several modalities in one vector are
    written `image/hsc+spectrum/desi`. Raises EmbeddingsError where the fields disagree.
    """

    object_id: tuple[str, ...]
    modality: tuple[str, ...]
    ra: Float64[np.ndarray, " R"]
    dec: Float64[np.ndarray, " R"]
    vectors: Float16[np.ndarray, "R D"]
    space: str
    model_id: str

    def __post_init__(self) -> None:
        check_space(self.space)
        for name in ("modality", "ra", "dec", "vectors"):
            if len(getattr(self, name)) != len(self.object_id):
                raise EmbeddingsError(
                    f"{name} must hold one value for each of {len(self.object_id)} rows, not {len(getattr(self, name))}"
                )

    def __len__(self) -> int:
        return len(self.object_id)


@dataclass(frozen=True)
class EmbeddingShards:
    """Shards that are read in turn, so that no more than a block of their vectors is in memory; see `open_shards`."""

    paths: tuple[Path, ...]
    space: str
    model_id: str
    dimension: int

    def rows(self) -> pa.Table:
        """All rows without their vectors, in order: `object_id`, `ra`, `dec` (degrees, ICRS) and `modality`."""
        tables = [pq.read_table(path, columns=list(_COLUMNS[:-1])) for path in self.paths]
        return pa.concat_tables([table.replace_schema_metadata(None) for table in tables], promote_options="default")

    def blocks(self, num_rows: int = 16_384) -> Iterator[Float16[np.ndarray, "B D"]]:
        """The vectors of all rows as stored, in the order of `rows`, at most `num_rows` at a time."""
        for path in self.paths:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(num_rows, columns=["vector"]):
                    yield batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dimension)


def open_shards(source: str | Path | Iterable[str | Path]) -> EmbeddingShards:
    """A folder's `*.parquet` shards (in order of name), one shard, or a list of shards; only headers are read.

    Raises EmbeddingsError as `read_embedding_shards` does.
    """
    paths = _shard_paths(source)
    headers = [_read_header(path) for path in paths]
    for path, header in zip(paths, headers, strict=True):
        for name in ("model_id", "space", "dimension"):
            if header[name] != headers[0][name]:
                raise EmbeddingsError(f"{path}: {name} is {header[name]!r}, but {headers[0][name]!r} in {paths[0]}")
    return EmbeddingShards(tuple(paths), headers[0]["space"], headers[0]["model_id"], headers[0]["dimension"])


def check_space(space: str) -> None:
    """Raises EmbeddingsError unless `space` is one of SPACES."""
    if space not in SPACES:
        raise EmbeddingsError(f"space must be one of {list(SPACES)}, found {space!r}")


def write_embedding_shard(
    path: str | Path,
    object_id: Sequence[str],
    modality: Sequence[str] | str,
    vectors: np.ndarray | Tensor,
    *,
    model_id: str,
    space: str,
    ra: np.ndarray | Tensor | Sequence[float] | None = None,
    dec: np.ndarray | Tensor | Sequence[float] | None = None,
) -> None:
    """Write one Parquet shard: rows (object, modality) with their vectors [R, D], stored as float16.

    `modality` is one name for all rows or one for each; `ra` and `dec` in degrees, ICRS. The file appears whole or not
    at all. Raises EmbeddingsError on fields that disagree in length and on vectors that float16 cannot hold.
    """
    path = Path(path)
    array = vectors.detach().cpu().float().numpy() if isinstance(vectors, Tensor) else np.asarray(vectors)
    if array.ndim != 2:
        raise EmbeddingsError(f"{path}: vectors must have shape [rows, dimension], found {list(array.shape)}")
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    wrong = ~np.isfinite(half).all(1)
    if wrong.any():
        row = int(wrong.argmax())
        name = object_id[row] if row < len(object_id) else row
        raise EmbeddingsError(
            f"{path}: vector of object {name} (row {row}) is not finite in float16; {int(wrong.sum())} such"
        )
    unknown = np.full(len(object_id), np.nan)
    table = EmbeddingTable(
        object_id=tuple(map(str, object_id)),
        modality=(modality,) * len(object_id) if isinstance(modality, str) else tuple(modality),
        ra=unknown if ra is None else np.asarray(ra, np.float64),
        dec=unknown if dec is None else np.asarray(dec, np.float64),
        vectors=half,
        space=space,
        model_id=model_id,
    )
    _write_table(path, table)


def read_embedding_shards(source: str | Path | Iterable[str | Path]) -> EmbeddingTable:
    """Read a folder's `*.parquet` shards (in order of name), one shard, or a list of shards, as one table.

    Raises EmbeddingsError where there is none, where a file is not a shard, and where shards disagree in model, space
    or dimension.
    """
    paths = _shard_paths(source)
    tables = [_read_table(path) for path in paths]
    first = tables[0]
    for path, table in zip(paths, tables, strict=True):
        for name in ("model_id", "space"):
            if getattr(table, name) != getattr(first, name):
                raise EmbeddingsError(
                    f"{path}: {name} is {getattr(table, name)!r}, but {getattr(first, name)!r} in {paths[0]}"
                )
        if table.vectors.shape[1] != first.vectors.shape[1]:
            raise EmbeddingsError(
                f"{path}: dimension is {table.vectors.shape[1]}, but {first.vectors.shape[1]} in {paths[0]}"
            )
    return EmbeddingTable(
        object_id=tuple(i for table in tables for i in table.object_id),
        modality=tuple(m for table in tables for m in table.modality),
        ra=np.concatenate([table.ra for table in tables]),
        dec=np.concatenate([table.dec for table in tables]),
        vectors=np.concatenate([table.vectors for table in tables]),
        space=first.space,
        model_id=first.model_id,
    )


def _shard_paths(source: str | Path | Iterable[str | Path]) -> list[Path]:
    if not isinstance(source, str | Path):
        paths = [Path(path) for path in source]
    elif Path(source).is_dir():
        paths = sorted(Path(source).glob("*.parquet"))
    else:
        paths = [Path(source)]
    if not paths:
        raise EmbeddingsError(f"{source}: no embedding shard (*.parquet) there")
    return paths


def _write_table(path: Path, table: EmbeddingTable) -> None:
    dimension = table.vectors.shape[1]
    flat = pa.array(table.vectors.reshape(-1), pa.float16())
    header = {"model_id": table.model_id, "space": table.space, "dimension": dimension}
    content = pa.table(
        {
            "object_id": pa.array(table.object_id, pa.string()),
            "ra": pa.array(table.ra, pa.float64()),
            "dec": pa.array(table.dec, pa.float64()),
            "modality": pa.array(table.modality, pa.string()).dictionary_encode(),
            "vector": pa.FixedSizeListArray.from_arrays(flat, dimension),
        }
    ).replace_schema_metadata({_METADATA_KEY: json.dumps(header).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        pq.write_table(content, partial, compression="zstd")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read_header(path: Path) -> dict[str, Any]:
    """`model_id`, `space` and `dimension` of a shard. Raises EmbeddingsError if the file is none."""
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise EmbeddingsError(f"{path}: cannot be read as Parquet ({error})") from None
    header = (schema.metadata or {}).get(_METADATA_KEY)
    missing = [name for name in _COLUMNS if name not in schema.names]
    if header is None or missing:
        raise EmbeddingsError(
            f"{path}: not an embedding shard; expected columns {list(_COLUMNS)} and a header of model and space, "
            f"missing: {missing or 'the header'}"
        )
    fields: dict[str, Any] = json.loads(header)
    check_space(fields["space"])
    return fields


def _read_table(path: Path) -> EmbeddingTable:
    fields = _read_header(path)
    try:
        content = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise EmbeddingsError(f"{path}: cannot be read as Parquet ({error})") from None
    vectors = content["vector"].combine_chunks()
    return EmbeddingTable(
        object_id=tuple(content["object_id"].to_pylist()),
        modality=tuple(content["modality"].to_pylist()),
        ra=content["ra"].to_numpy(),
        dec=content["dec"].to_numpy(),
        vectors=vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, fields["dimension"]),
        space=fields["space"],
        model_id=fields["model_id"],
    )
