"""The labels of an index's objects: numbers that are known of some, and are predicted for others."""

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int, Int64

from .building import number_columns
from .protocol import EmbeddingIndexError
from .rows import ID, IndexRows


@dataclass(frozen=True, eq=False)
class Labels:
    """One row of `table` for each labelled object: `object_id`, and columns of float64, NaN where unknown."""

    table: pa.Table
    rows: IndexRows

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self.table.column_names[1:])

    def of_object(self, object_id: str) -> dict[str, float]:
        """What is known of an object."""
        rows = self.rows.rows_of(object_id)
        if not len(rows) or not self.names:
            return {}
        place = self.place[rows[0]]
        values = {} if place < 0 else {name: float(self._values[name][place]) for name in self.names}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def of_rows(self, name: str, row: Int[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
        """One label of the objects in these rows; NaN where it is not known, and for row -1."""
        place = np.where(row < 0, -1, self.place[row])
        values = np.append(self._values[name], np.nan)  # place -1 is the last
        return values[place]

    def is_known(self, name: str) -> Bool[np.ndarray, " R"]:
        """Which rows are of objects that have this label."""
        if name not in self._is_known:
            self._is_known[name] = ~np.isnan(self.of_rows(name, np.arange(len(self.rows))))
        return self._is_known[name]

    @functools.cached_property
    def _is_known(self) -> dict[str, np.ndarray]:
        """What was asked for before."""
        return {}

    @functools.cached_property
    def _values(self) -> dict[str, np.ndarray]:
        return {name: self.table[name].to_numpy() for name in self.names}

    @functools.cached_property
    def place(self) -> Int64[np.ndarray, " R"]:
        """The row of the table for each row of the index, -1 where there is none."""
        ids = self.rows.object_ids(np.arange(len(self.rows)))
        found = pc.index_in(ids, value_set=self.table["object_id"].combine_chunks())
        return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def label_table(labels: pa.Table | Mapping[str, Any] | None, known: pa.Array) -> pa.Table:
    """Labels as they are kept. Raises EmbeddingIndexError on objects that are not among the `known`."""
    if labels is None:
        return pa.table({"object_id": pa.array([], ID)})
    columns = number_columns(labels, "labels")
    is_known = pc.is_in(columns["object_id"], value_set=known)
    unknown = columns["object_id"].filter(pc.invert(is_known))
    if len(unknown):
        raise EmbeddingIndexError(f"{len(unknown)} labelled objects have no embedding; the first: {str(unknown[0])!r}")
    return pa.table(columns)


def read_labels(base: Path, changes: Iterable[tuple[pa.Table | None, list[str]]]) -> pa.Table:
    """The labels of a base after changes, each a table of labels (None: none) and the objects that it removed."""
    table = pq.read_table(base)
    table = table.set_column(0, "object_id", pc.cast(table["object_id"], ID))
    latest: dict[str, tuple[int, int] | None] = {}
    tables = []
    for number, (changed, removed) in enumerate(changes):
        latest.update(dict.fromkeys(removed))
        tables.append(changed)
        if changed is not None:
            latest.update({name: (number, row) for row, name in enumerate(changed["object_id"].to_pylist())})
    if not latest:
        return table
    kept = [table.filter(pc.invert(pc.is_in(table["object_id"], value_set=pa.array(list(latest), ID))))]
    for number, changed in enumerate(tables):
        rows = [place[1] for place in latest.values() if place is not None and place[0] == number]
        if changed is not None and rows:
            kept.append(changed.take(rows))
    # A column that one table lacks is unknown there.
    joined = pa.concat_tables(kept, promote_options="default").combine_chunks()
    names = [name for name in joined.column_names if name != "object_id"]
    return pa.table({"object_id": joined["object_id"], **{n: pc.fill_null(joined[n], math.nan) for n in names}})
