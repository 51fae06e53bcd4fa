"""`armillary simulate`: the simulated sky as a dataset on disk, shard by shard; an interrupted run goes on."""

from pathlib import Path

from rich.console import Console
from rich.progress import track

from ..dataset import shard_folder, write_shard
from ..modalities import modality
from .sky import SkySettings, simulate_sky

SHARD_SIZE = 250
"""Objects of one shard."""


def write_simulated_dataset(settings: SkySettings, folder: str | Path) -> int:
    """Write the simulated sky to `folder`; shards that stand already are left alone. Returns the number of new batches.

    Every shard but the last holds SHARD_SIZE objects.
    """
    num_batches = -(-settings.num_objects // SHARD_SIZE)
    first = next((index for index in range(num_batches) if not _is_written(folder, settings, index)), num_batches)
    batches = simulate_sky(settings, SHARD_SIZE, first)
    console = Console(stderr=True)
    for index in track(range(first, num_batches), description="simulate", console=console):
        for observation in next(batches):
            if not _path(folder, observation.modality.name, index).exists():
                write_shard(folder, observation, index)
    return num_batches - first


def _is_written(folder: str | Path, settings: SkySettings, index: int) -> bool:
    return all(_path(folder, name, index).exists() for name in settings.modalities)


def _path(folder: str | Path, name: str, index: int) -> Path:
    return shard_folder(folder, modality(name)) / f"part-{index:05d}.parquet"
