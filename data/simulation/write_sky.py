"""`armillary data simulate`: the simulated sky as a dataset on disk, piece by piece; an interrupted run goes on."""

import itertools
from pathlib import Path

from rich.console import Console
from rich.progress import track

from ..dataset_writer import DatasetWriter
from .sky import SkySettings, simulate_sky

BATCH_SIZE = 250
"""Objects simulated at once."""


def write_simulated_dataset(settings: SkySettings, folder: str | Path) -> int:
    """Write the simulated sky to `folder`; batches that stand are left alone. Returns the number of new ones."""
    num_batches = -(-settings.num_objects // BATCH_SIZE)
    with DatasetWriter(folder) as writer:
        names = [f"simulated-{settings.seed}-{index}" for index in range(num_batches)]
        first = next((index for index, name in enumerate(names) if not writer.has_piece(name)), num_batches)
        batches = itertools.islice(simulate_sky(settings, BATCH_SIZE), first, None)
        for index in track(range(first, num_batches), description="simulate", console=Console(stderr=True)):
            with writer.piece(names[index]):
                for observation in next(batches):
                    writer.write(observation)
    return num_batches - first
