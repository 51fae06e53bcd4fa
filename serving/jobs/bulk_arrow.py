"""An Arrow stream on disk, a batch at a time: each is checked and read as a body (`formats/arrow_body.py`)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from ..formats.arrow_body import read_arrow
from ..limits import Limits
from ..problems import ProblemError


@dataclass(eq=False)
class ArrowBatches:
    """The batches of a stream. Opening it reads it once. Raises ProblemError if it is none, or a batch exceeds a body.

    For one thread.
    """

    path: Path
    limits: Limits
    metadata: dict[str, str] = field(default_factory=dict)
    """Of the schema: what is ours."""
    _starts: list[int] = field(default_factory=list)
    """The first row of each batch that has rows, and the number of rows at the end."""
    _read: tuple[int, pa.Table] | None = None
    bytes_of_row: int = 0
    """Of the batch whose rows are largest."""

    def __post_init__(self) -> None:
        rows = 0
        for number, (table, size) in enumerate(self._tables()):
            self._starts.append(rows)
            rows += table.num_rows
            self.bytes_of_row = max(self.bytes_of_row, size // max(table.num_rows, 1))
            self._read = (number, table)
        self._starts.append(rows)

    @property
    def count(self) -> int:
        """Rows."""
        return self._starts[-1]

    def tables(self, start: int, stop: int) -> Iterator[tuple[pa.Table, int]]:
        """The rows from `start` to before `stop`, as parts of batches, each with the number of its first row."""
        for number, (first, last) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            low, high = max(start, first), min(stop, last)
            if low < high:
                yield self._table(number).slice(low - first, high - low), low

    def _table(self, number: int) -> pa.Table:
        if self._read is None or self._read[0] != number:
            for place, (table, _) in enumerate(self._tables(number)):
                if place == number:
                    self._read = (number, table)
                    break
        assert self._read is not None
        return self._read[1]

    def _tables(self, first: int = 0) -> Iterator[tuple[pa.Table, int]]:
        """The batches in order, with their bytes; those before `first` are passed over unread."""
        limit = self.limits.max_body_bytes
        # Each batch is a stream of its own: the schema, the batch, the end.
        all_rows = self.limits.model_copy(update={"max_items": 2**62})
        number = 0
        try:
            with pa.memory_map(str(self.path)) as source:
                messages = iter(pa.ipc.MessageReader.open_stream(source))
                schema = next(messages).serialize().to_pybytes()
                empty, self.metadata = read_arrow(schema + _END, all_rows)
                for message in messages:
                    if number < first:
                        number += 1
                        yield empty, 0
                        continue
                    size = len(message.metadata) + (0 if message.body is None else len(message.body))
                    if size > limit:
                        raise ProblemError(
                            "too-large",
                            f"batch {number} has {size} bytes, at most {limit} may come; write smaller ones "
                            "(write_table(table, max_chunksize=100))",
                        )
                    table, _ = read_arrow(schema + message.serialize().to_pybytes() + _END, all_rows)
                    number += 1
                    yield table, size
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise ProblemError("malformed-body", f"the upload is not an Arrow stream: {str(error)[:300]}") from None


_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""The end of a stream."""
