"""Who goes where in a token store: a pure function of a dataset and of the objects a store has already.

All objects of the dataset are registered, whatever is tokenized, so that any number of processes and jobs, each with
modalities of its own, agree on the shards without talking to each other. New objects are sorted along the sky and cut
into shards; within a shard they stand in the order of their keys, so that a block of a shard is no corner of its sky.
The dataset is swept once, a region of the sky at a time, identities alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int64

from .dataset import ObservationDataset
from .parquet_files import ObservationFile
from .sky_partition import Pixel
from .token_shards import TokenStoreError, object_keys
from .token_store import TokenStore


@dataclass(eq=False)
class PlannedShard:
    """One shard of a store, as it must become."""

    index: int
    num_objects: int
    object_id: list[str] | None = None
    """Of the objects to register; None if they are registered already."""
    sky: Float64[np.ndarray, "n 2"] | None = None
    """Their ra and dec, degrees."""
    members: dict[str, tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " r"]]] = field(default_factory=dict)
    """By modality: the places in the shard of the objects that have it, and their rows in the dataset, ascending."""

    def rows(self, name: str) -> Int64[np.ndarray, " n"]:
        """The row of each object among those of the shard that have the modality, by place; -1 if it lacks it."""
        rows = np.full(self.num_objects, -1, dtype=np.int64)
        rows[np.sort(self.members[name][0])] = np.arange(len(self.members[name][0]))
        return rows


@dataclass(frozen=True)
class TokenPlan:
    """The shards of a store that one process has to see to, and how many there are in all."""

    num_shards: int
    shards: tuple[PlannedShard, ...]


def plan_shards(
    dataset: ObservationDataset, registered: TokenStore | None, shard_size: int, part: int = 0, num_parts: int = 1
) -> TokenPlan:
    """The shards whose number leaves `part` when divided by `num_parts`; the objects of `registered` keep their place.

    Memory: 8 bytes for each object of the dataset, and about 100 for each of the part. Raises TokenStoreError if an
    object has two positions, or comes twice in a modality.
    """
    starts = np.zeros(1, np.int64) if registered is None else registered.starts
    num_objects = int(starts[-1])
    keys, objects, rows = [], [], []
    for region in sweep(dataset):
        keys.append(region.key)
        place = np.full(len(region.key), -1) if registered is None else registered.find(region.object_id.to_pylist())
        is_new = place < 0
        place[is_new] = np.arange(num_objects, num_objects + is_new.sum())
        num_objects += int(is_new.sum())
        edges = _shard_edges(starts, num_objects, shard_size)
        ours = (np.searchsorted(edges, place, side="right") - 1) % num_parts == part
        mine, kept = is_new & ours, ours[region.object]
        objects.append((place[mine], region.key[mine], region.sky[mine], region.object_id.filter(pa.array(mine))))
        rows.append((place[region.object][kept], region.modality[kept], region.row[kept]))
    _check_ids(dataset, np.concatenate(keys))
    new_place, key, sky = (np.concatenate(column) for column in list(zip(*objects, strict=True))[:3])
    object_id = pa.chunked_array([ids for *_, ids in objects])
    place, modality, row = (np.concatenate(column) for column in zip(*rows, strict=True))
    order = np.lexsort((row, place))
    place, modality, row = place[order], modality[order], row[order]
    edges = _shard_edges(starts, num_objects, shard_size)
    shards = []
    for index in range(part, len(edges) - 1, num_parts):
        bounds = edges[index : index + 2]
        shard = PlannedShard(index, int(bounds[1] - bounds[0]))
        here = slice(*np.searchsorted(place, bounds).tolist())
        local = place[here] - bounds[0]
        new = slice(*np.searchsorted(new_place, bounds).tolist())
        if new.stop > new.start:
            by_key = np.argsort(key[new], kind="stable")
            shard.object_id, shard.sky = object_id[new].take(pa.array(by_key)).to_pylist(), sky[new][by_key]
            local = np.argsort(by_key)[local]
        for number, declared in enumerate(dataset.modalities):
            of_modality = modality[here] == number
            along_disk = np.argsort(row[here][of_modality])
            shard.members[declared.name] = local[of_modality][along_disk], row[here][of_modality][along_disk]
        shards.append(shard)
    return TokenPlan(len(edges) - 1, tuple(shards))


def _shard_edges(
    starts: Int64[np.ndarray, " edges"], num_objects: int, shard_size: int
) -> Int64[np.ndarray, " new_edges"]:
    """Where shards begin, and the last ends: those that stand, then new ones of `shard_size` objects."""
    new = np.arange(starts[-1], num_objects, shard_size)
    return np.concatenate([starts[:-1], new, [num_objects]]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class SkyRegion:
    """The objects of one region of the sky, in order, and the rows of a dataset that are theirs."""

    object_id: Any
    """Arrow array of strings [n]."""
    key: Int64[np.ndarray, " n"]
    sky: Float64[np.ndarray, "n 2"]
    object: Int64[np.ndarray, " R"]
    """Of each row: the number of its object in the region."""
    modality: Int64[np.ndarray, " R"]
    """Of each row: the number of its modality in the dataset."""
    row: Int64[np.ndarray, " R"]
    """Row on disk of the modality."""


def sweep(dataset: ObservationDataset) -> Iterator[SkyRegion]:
    """All objects of a dataset along the sky, region by region; those without a position come last.

    Objects stand in the order of their HEALPix index, then their id. Raises TokenStoreError if one comes twice in a
    modality.
    """
    for files in _regions(dataset):
        tables = [file.read_identity() for _, _, file in files]
        rows = np.concatenate(
            [start + np.arange(len(table)) for (_, start, _), table in zip(files, tables, strict=True)]
        )
        modality = np.concatenate([np.full(len(t), number) for (number, _, _), t in zip(files, tables, strict=True)])
        table = pa.concat_tables(tables)
        order = pc.sort_indices(table, [("_healpix_29", "ascending"), ("object_id", "ascending")])
        table, order = table.take(order).combine_chunks(), order.to_numpy()
        index, names = table["_healpix_29"].to_numpy(), table["object_id"].combine_chunks()
        is_first = np.ones(len(order), dtype=bool)
        is_first[1:] = (index[1:] != index[:-1]) | ~pc.equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
        modality, rows = modality[order], rows[order]
        # The sort is stable, so that rows of one object stand in the order of modalities.
        doubled = np.flatnonzero(~is_first[1:] & (modality[1:] == modality[:-1]))
        if len(doubled):
            raise TokenStoreError(
                f"{dataset.folder}: object {names[int(doubled[0])]} comes twice in "
                f"{dataset.modalities[modality[doubled[0]]].name}"
            )
        first = np.flatnonzero(is_first)
        sky = np.stack([table["ra"].to_numpy()[first], table["dec"].to_numpy()[first]], 1)
        object_id = names.take(pa.array(first))
        key = object_keys(object_id.to_pylist())
        yield SkyRegion(object_id, key, sky, np.cumsum(is_first) - 1, modality, rows)


def _regions(dataset: ObservationDataset) -> Iterator[list[tuple[int, int, ObservationFile]]]:
    """Files that share sky, together: the number of their modality, the row at which they begin, the file."""
    placed: list[tuple[Pixel, int, int, ObservationFile]] = []
    unplaced = []
    for number, modality in enumerate(dataset.modalities):
        start = 0
        for file in dataset.files(modality.name):
            if file.pixel is None:
                unplaced.append((number, start, file))
            else:
                placed.append((file.pixel, number, start, file))
            start += file.num_rows
    # In this order a pixel comes before those within it: a region is a file that lies in none of the ones before.
    placed.sort(key=lambda entry: (entry[0].first, entry[0].order, entry[1]))
    region: list[tuple[int, int, ObservationFile]] = []
    stop = 0
    for pixel, number, start, file in placed:
        if region and pixel.first >= stop:
            yield sorted(region, key=lambda entry: entry[:2])
            region = []
        stop = max(stop, pixel.stop)
        region.append((number, start, file))
    for last in (region, unplaced):
        if last:
            yield sorted(last, key=lambda entry: entry[:2])


def _check_ids(dataset: ObservationDataset, keys: Int64[np.ndarray, " objects"]) -> None:
    """Raise TokenStoreError if an id stands at two positions."""
    ordered = np.sort(keys)
    doubled = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(doubled):
        return
    seen: dict[str, Sequence[float]] = {}
    for region in sweep(dataset):
        for row in np.flatnonzero(np.isin(region.key, doubled)):
            name, sky = region.object_id[int(row)].as_py(), region.sky[row].tolist()
            if name in seen:
                raise TokenStoreError(
                    f"{dataset.folder}: object {name} stands at two positions, {tuple(seen[name])} and {tuple(sky)}; "
                    "in one dataset an object has one"
                )
            seen[name] = sky
