"""Several catalogues as one: who is who in a table of associations, and all their observations in a joint dataset.

Ids and positions are read and grouped first; heavy columns are then read of the objects that are kept alone, file by
file, and written under the id and the position of their group, for in a dataset an object has one of each. An
interrupted run goes on with the files that are left.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64
from rich.console import Console
from rich.progress import track

from ..dataset import ObservationDataset
from ..dataset_writer import DatasetWriter
from ..observations import Observation, ObservationError
from ..parquet_files import ObservationFile, replacing
from ..sky_partition import healpix_index
from .match import Engine, Mode, check_arguments, crossmatch
from .object_groups import ObjectGroups, group_objects
from .sky_sources import SkySource, read_sky_table
from .sky_table import SkyTable

ASSOCIATIONS = "associations.parquet"
SETTINGS = "crossmatch.json"
"""What the output was begun with; a run that goes on must agree."""

_WORK_FOLDER = ".crossmatch"
_ROW_GROUP_ROWS = 1_000_000
_ROW_GROUPS_AT_ONCE = 8
"""Of observations in memory, 8 MB each before they are decoded."""


@dataclass(frozen=True)
class CrossmatchSummary:
    """What `crossmatch_datasets` found: objects kept (or pairs), objects by number of surveys, rows by modality."""

    num_objects: int
    num_by_surveys: Mapping[int, int]
    num_rows: Mapping[str, int]


def crossmatch_datasets(
    sources: Sequence[SkySource | str | Path],
    output: str | Path,
    radius: float,
    *,
    mode: Mode = "one-to-one",
    min_surveys: int = 2,
    engine: Engine = "auto",
    epoch: float | None = None,
    scheduler: str | None = None,
    modalities: Mapping[str, Sequence[str]] | None = None,
) -> CrossmatchSummary:
    """Match the objects of two or more sources within `radius` arcsec; write associations and a joint dataset.

    `one-to-one` groups the objects of any number of sources (`group_objects`; the source with the best positions comes
    first) and keeps groups of at least `min_surveys` members. `<output>/associations.parquet` has one row for each:
    object_id, ra, dec and num_surveys, and for each survey its own `<survey>_object_id`, `_ra`, `_dec` (as the source
    has them) and `_separation` (arcsec from the group's position). `output` itself becomes a dataset with all
    modalities of those sources that are datasets, or those that `modalities` names by survey; all carry the group's
    object_id, ra and dec (of its reference, at the common epoch). `nearest` and `all` match two sources, and write the
    pairs alone: an object with several partners has no one id.

    Everything is compressed with zstd level 1. A run that was interrupted goes on where it stood. Raises
    ObservationError if two sources bring the same modality, if `output` was begun with other settings, and as
    `read_sky_table`, `group_objects` and `DatasetWriter` do.
    """
    output, given = Path(output), [source if isinstance(source, SkySource) else SkySource(source) for source in sources]
    check_arguments(radius, mode, engine)
    if mode != "one-to-one" and len(given) != 2:
        raise ObservationError(f"mode {mode} matches two catalogues, found {len(given)}; one-to-one takes any number")
    chosen = _choose_modalities(given, modalities or {}) if mode == "one-to-one" else {}
    _begin(output, given, {"radius": radius, "mode": mode, "min_surveys": min_surveys, "epoch": epoch}, chosen)
    options: dict[str, Any] = {"engine": engine, "epoch": epoch, "scheduler": scheduler}
    options["work_folder"] = work = output / _WORK_FOLDER
    try:
        if not (output / ASSOCIATIONS).is_file():
            tables = [read_sky_table(source) for source in given]
            if mode == "one-to-one":
                groups = group_objects(tables, radius, **options)
                _write(output / ASSOCIATIONS, _group_columns(groups.select(groups.num_members >= min_surveys), tables))
            else:
                _write(output / ASSOCIATIONS, _pair_columns(tables[0], tables[1], radius, mode, options))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    associations = pq.read_table(output / ASSOCIATIONS)
    if chosen:
        _join(output, given, chosen, associations)
    num_surveys = associations["num_surveys"].to_numpy() if mode == "one-to-one" else np.full(len(associations), 2)
    counts = {
        int(count): int(number) for count, number in zip(*np.unique(num_surveys, return_counts=True), strict=True)
    }
    rows = {}
    if chosen and len(associations):
        joint = ObservationDataset(output)
        rows = {modality.name: joint.num_objects(modality.name) for modality in joint.modalities}
    return CrossmatchSummary(len(associations), counts, rows)


def _choose_modalities(sources: Sequence[SkySource], wanted: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The modalities that each dataset among the sources brings, by survey."""
    unknown = sorted(set(wanted) - {source.survey for source in sources if source.is_dataset})
    if unknown:
        raise ObservationError(f"modalities are named for {unknown}, which are no datasets to be joined")
    chosen: dict[str, list[str]] = {}
    owner: dict[str, SkySource] = {}
    for source in sources:
        if not source.is_dataset:
            continue
        present = [modality.name for modality in ObservationDataset(source.path).modalities]
        names = list(wanted.get(source.survey, present))
        missing = sorted(set(names) - set(present))
        if missing:
            raise ObservationError(f"{source.path}: no modality {missing[0]!r}; it holds {present}")
        for name in names:
            if name in owner:
                raise ObservationError(
                    f"{owner[name].path} and {source.path} both hold {name}, and one would overwrite the other; name "
                    f"what to take from each (--take {source.survey}=MODALITY,...)"
                )
            owner[name] = source
        chosen[source.survey] = names
    return chosen


def _begin(
    output: Path, sources: Sequence[SkySource], settings: dict[str, Any], chosen: Mapping[str, Sequence[str]]
) -> None:
    """Make the folder, and write down what is to be done; or check that it is what was begun."""
    for source in sources:
        given, made = Path(source.path).resolve(), output.resolve()
        if given == made or made in given.parents or given in made.parents:
            raise ObservationError(f"{output}: the output must lie apart from the source {source.path}")
    asked = [{**asdict(source), "path": str(Path(source.path).resolve())} for source in sources]
    content = {**settings, "sources": asked, "modalities": dict(chosen)}
    path = output / SETTINGS
    for name in (SETTINGS, ASSOCIATIONS):
        for leftover in output.glob(f".{name}.*.tmp"):  # of a process that died
            leftover.unlink()
    if (output / ASSOCIATIONS).is_file():
        begun = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        differing = [name for name in content if begun.get(name) != content[name]]
        if differing:
            raise ObservationError(
                f"{output}: was begun with other {', '.join(differing)}; choose another output, or delete it"
            )
        return
    if output.is_dir() and {entry.name for entry in output.iterdir()} - {SETTINGS, _WORK_FOLDER}:
        raise ObservationError(f"{output}: expected an empty or new folder")
    output.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write(json.dumps(content, indent=2).encode())


def _group_columns(groups: ObjectGroups, tables: Sequence[SkyTable]) -> dict[str, Any]:
    columns: dict[str, Any] = {"object_id": groups.group_id, "ra": groups.ra, "dec": groups.dec}
    columns["num_surveys"] = groups.num_members
    for place, table in enumerate(tables):
        rows = groups.member_row[:, place]
        columns |= _columns_of(table, rows)
        columns[f"{table.name}_separation"] = pa.array(groups.separation[:, place], mask=rows < 0)
    return columns


def _pair_columns(
    left: SkyTable, right: SkyTable, radius: float, mode: Mode, options: dict[str, Any]
) -> dict[str, Any]:
    if left.name == right.name:
        raise ObservationError(f"expected two catalogues with names of their own, found {left.name!r} twice")
    pairs = crossmatch(left, right, radius, mode=mode, **options)
    columns = _columns_of(left, pairs.left_row) | _columns_of(right, pairs.right_row)
    return columns | {"separation": pairs.separation}


def _columns_of(table: SkyTable, rows: Int64[np.ndarray, " R"]) -> dict[str, Any]:
    """Id and position of these rows; null where the row is -1."""
    index = pa.array(rows, mask=rows < 0)
    return {
        f"{table.name}_object_id": table.object_id.take(index),
        f"{table.name}_ra": pa.array(table.ra).take(index),
        f"{table.name}_dec": pa.array(table.dec).take(index),
    }


def _write(path: Path, columns: dict[str, Any]) -> None:
    with replacing(path) as stream:
        pq.write_table(
            pa.table(columns),
            stream,
            row_group_size=_ROW_GROUP_ROWS,
            compression="zstd",
            compression_level=1,
            write_page_checksum=True,
        )


def _join(output: Path, sources: Sequence[SkySource], chosen: Mapping[str, Sequence[str]], associations: Any) -> None:
    """Write the observations of all groups' members, one piece for each file that they come from."""
    with DatasetWriter(output) as writer:
        for source in sources:
            names = chosen.get(source.survey, ())
            if not names:
                continue
            dataset = ObservationDataset(source.path)
            members, index = _members_along_the_sky(associations, source.survey)
            files = [(name, file) for name in names for file in dataset.files(name) if file.pixel is not None]
            for name, file in track(
                files, description=f"join {source.survey}", console=Console(stderr=True), transient=True
            ):
                piece = f"{source.survey}/{name}/{file.path.relative_to(dataset.folder).as_posix()}"
                if writer.has_piece(piece):
                    continue
                assert file.pixel is not None
                low, high = np.searchsorted(index, [file.pixel.first, file.pixel.stop])
                with writer.piece(piece):
                    for observation in _members_in(file, members.slice(low, high - low)):
                        writer.write(observation)


def _members_along_the_sky(associations: Any, survey: str) -> tuple[Any, Int64[np.ndarray, " M"]]:
    """The groups with a member of this survey, as `own_id`, object_id, ra, dec; and the index of the member's place."""
    columns = ["object_id", "ra", "dec", *(f"{survey}_{name}" for name in ("object_id", "ra", "dec"))]
    present = associations.select(columns).filter(pc.is_valid(associations[f"{survey}_object_id"]))
    index = healpix_index(present[f"{survey}_ra"].to_numpy(), present[f"{survey}_dec"].to_numpy())
    order = np.argsort(index, kind="stable")
    members = present.take(pa.array(order)).combine_chunks()
    own_id = members[f"{survey}_object_id"]
    return members.select(["object_id", "ra", "dec"]).append_column("own_id", own_id), index[order]


def _members_in(file: ObservationFile, members: Any) -> Iterator[Observation]:
    """The observations of a file that belong to a group, under its id and position, some row groups at a time."""
    own_id = members["own_id"].combine_chunks()
    place = pc.index_in(file.read_identity()["object_id"].cast(own_id.type), own_id).combine_chunks()
    rows = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
    group = place.drop_null().to_numpy()
    at_once = _ROW_GROUPS_AT_ONCE * max(file.row_group_sizes, default=1)
    for start in range(0, len(rows), at_once):
        observation = file.read_rows(rows[start : start + at_once])
        found = members.take(pa.array(group[start : start + at_once]))
        yield replace(
            observation,
            object_id=tuple(found["object_id"].to_pylist()),
            ra=found["ra"].to_numpy(),
            dec=found["dec"].to_numpy(),
        )
