"""The result of a job in the format that a caller wants: Arrow as it is kept, Parquet and .npy made from it when asked.

What is made is kept beside it, so that a download can be resumed.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...data.parquet_files import replacing
from ..formats.binary_answers import wanted_type
from ..formats.bodies import NPY
from ..problems import ProblemError
from .jobs import RESULT

ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
FORMATS = {"arrow": ARROW, "parquet": PARQUET, "npy": NPY}
FILES = {ARROW: RESULT, PARQUET: "result.parquet", NPY: "result.npy"}
"""By media type; the first is the one of whoever does not say."""


def wanted_format(name: str | None, accept: str | None) -> str:
    """The media type by `?format=`, else by Accept. Raises ProblemError: 422 for an unknown name, 406 if none fits."""
    if name is not None:
        if name not in FORMATS:
            raise ProblemError("invalid-request", f"format: expected one of {list(FORMATS)}, found {name!r}")
        return FORMATS[name]
    return wanted_type(accept, tuple(FILES))


def result_file(place: Path, media_type: str) -> Path:
    """The file of a job's result. Raises ProblemError (406) if it has no vectors, and .npy is asked for."""
    path, source = place / FILES[media_type], place / RESULT
    if path.exists():
        return path
    with pa.memory_map(str(source)) as stream, pa.ipc.open_stream(stream) as batches:
        if media_type == PARQUET:
            with replacing(path) as file, pq.ParquetWriter(file, batches.schema, compression="zstd") as writer:
                for batch in batches:
                    writer.write_batch(batch)
        else:
            _write_npy(path, batches)
    return path


def _write_npy(path: Path, batches: pa.RecordBatchReader) -> None:
    """The vectors [objects, dimension], NaN where an object was not usable."""
    if "embedding" not in batches.schema.names:
        raise ProblemError("not-acceptable", "this result is a table and no array: ask for Arrow or Parquet")
    width = batches.schema.field("embedding").type.list_size
    parts = list(batches)  # memory-mapped: no copy
    count = sum(part.num_rows for part in parts)
    with replacing(path) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_2_0(file, header)
        for part in parts:
            column = part["embedding"]
            # `values` has the places of missing rows, `flatten` leaves them out.
            vectors = column.values.to_numpy()[column.offset * width :][: len(column) * width]
            vectors = vectors.reshape(-1, width).astype("<f4")
            vectors[~column.is_valid().to_numpy(zero_copy_only=False)] = np.nan
            file.write(vectors.tobytes())
