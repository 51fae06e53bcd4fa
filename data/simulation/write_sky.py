"""`armillary data simulate`: the simulated sky as a dataset on disk, by many processes; an interrupted run goes on.

The objects of one HEALPix pixel are a shard, one file of each modality. Files that stand are left alone, so a killed
run is continued by the same call, and the parts of a Slurm array need not know of each other: whoever finds that all
shards stand writes the metadata of the whole. A shard is computed by one thread, so its bytes do not depend on who
makes it.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from ...settings import Settings, SettingsError
from ..dataset_writer import catalogue_folder, finish_catalogues, write_partition
from ..hats_catalogue import DATASET_FOLDER
from ..modalities import Modality
from ..observations import Observation, ObservationError
from ..parquet_files import replacing
from ..stacking import stack
from .record import RECORD
from .sky import SimulatedSky, SkySettings

BATCH_SIZE = 100
"""Objects of a shard that are simulated at once; fixed, since rounding depends on it."""


def write_simulated_dataset(
    settings: SkySettings, folder: str | Path, *, workers: int = 1, part: int = 0, num_parts: int = 1
) -> int:
    """Write the simulated sky to `folder` by `workers` processes; returns the number of shards that were new.

    Of jobs that share the work, this one is `part` of `num_parts` and takes every `num_parts`-th shard. Raises
    SettingsError on an impossible division of the work, and ObservationError if `folder` holds another dataset or the
    sky of other settings.
    """
    folder = Path(folder)
    if workers < 1 or not 0 <= part < num_parts:
        raise SettingsError(
            f"expected workers >= 1 and 0 <= part < num_parts, found workers={workers}, part={part}, "
            f"num_parts={num_parts}"
        )
    if _claim(folder, settings):
        return 0
    shards = range(-(-settings.num_objects // settings.shard_size))
    missing = [shard for shard in shards[part::num_parts] if not _is_written(settings, folder, shard)]
    title = "simulate" if num_parts == 1 else f"simulate, part {part} of {num_parts}"
    made = _in_processes if workers > 1 else _here
    for _ in track(made(settings, folder, missing, workers), title, total=len(missing), console=Console(stderr=True)):
        pass
    if all(_is_written(settings, folder, shard) for shard in shards):
        for leftover in folder.glob(f"*/*/{DATASET_FOLDER}/**/.*.tmp"):  # of processes that were killed
            leftover.unlink(missing_ok=True)
        finish_catalogues(folder)
        _write_record(folder, settings, is_whole=True)
    return len(missing)


def write_shard(settings: SkySettings, folder: Path, shard: int) -> None:
    """Write the files of one shard that do not stand yet."""
    pixel = settings.population.pixel(shard)
    first = shard * settings.shard_size
    rows = np.arange(first, min(first + settings.shard_size, settings.num_objects))
    names = [
        declared.name
        for declared in settings.modalities_of(shard)
        if not _path(settings, folder, declared, shard).exists()
    ]
    sky = SimulatedSky(settings)
    parts: dict[str, list[Observation]] = {name: [] for name in names}
    for start in range(0, len(rows), BATCH_SIZE):
        objects = sky.objects(rows[start : start + BATCH_SIZE])
        for name in names:
            parts[name].append(sky.observe(objects, name))
    for name in names:
        write_partition(folder, stack(parts.pop(name)), pixel.order, pixel.number)


def _here(settings: SkySettings, folder: Path, shards: list[int], workers: int) -> Iterator[None]:
    with _one_thread():
        for shard in shards:
            write_shard(settings, folder, shard)
            yield


def _in_processes(settings: SkySettings, folder: Path, shards: list[int], workers: int) -> Iterator[None]:
    """Write shards in fresh processes: forked ones would inherit locks that torch's threads hold."""
    arguments = settings.model_dump(mode="json")
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, max(1, len(shards))), context, initializer=_begin_worker)
    try:
        futures = [pool.submit(_write_in_worker, arguments, str(folder), shard) for shard in shards]
        for future in as_completed(futures):
            try:
                future.result()
            except BrokenProcessPool:
                raise ObservationError(
                    f"{folder}: a worker process ended before its shard was written (killed, or out of memory?); "
                    f"run again to go on, with fewer workers if memory is short"
                ) from None
            yield
    finally:
        pool.shutdown(cancel_futures=True)


def _write_in_worker(arguments: dict[str, Any], folder: str, shard: int) -> None:
    write_shard(SkySettings.model_validate(arguments), Path(folder), shard)


def _begin_worker() -> None:
    """One thread; the parent alone answers Ctrl-C; and no life without the parent, however it died."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _claim(folder: Path, settings: SkySettings) -> bool:
    """Note the settings in the folder; whether the dataset is whole already. Raises ObservationError if it is other."""
    path = folder / RECORD
    if path.exists():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            # The record of an older version lacks the keys that are newer: they had their defaults.
            known, is_whole = SkySettings().model_dump(mode="json") | record["settings"], bool(record["is_whole"])
        except (ValueError, KeyError, TypeError) as error:
            raise ObservationError(f"{path}: expected the record of a simulated sky; {error!r}") from None
        wanted = settings.model_dump(mode="json")
        different = sorted(key for key in wanted.keys() | known.keys() if wanted.get(key) != known.get(key))
        if different:
            key = different[0]
            raise ObservationError(
                f"{folder}: holds the sky of other settings: {key} is {known.get(key)}, expected {wanted.get(key)}"
            )
        return is_whole
    if folder.is_dir() and any(folder.glob(f"*/*/{DATASET_FOLDER}")):
        raise ObservationError(f"{folder}: holds a dataset that is no simulated sky; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _write_record(folder, settings, is_whole=False)
    return False


def _write_record(folder: Path, settings: Settings, *, is_whole: bool) -> None:
    content = {"settings": settings.model_dump(mode="json"), "is_whole": is_whole}
    with replacing(folder / RECORD) as stream:
        stream.write(json.dumps(content, indent=1).encode())


def _is_written(settings: SkySettings, folder: Path, shard: int) -> bool:
    return all(_path(settings, folder, declared, shard).exists() for declared in settings.modalities_of(shard))


def _path(settings: SkySettings, folder: Path, declared: Modality, shard: int) -> Path:
    return catalogue_folder(folder, declared) / DATASET_FOLDER / settings.population.pixel(shard).path
