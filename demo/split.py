"""Which objects of the demo train, choose and test: by region of the sky; real ones that it shows always test."""

from pathlib import Path

from ..data.dataset import ObservationDataset
from ..data.sky_split import split_positions, write_parts
from .real_observations import is_shown
from .settings import SplitSettings


def write_demo_parts(folder: Path, dataset: ObservationDataset, settings: SplitSettings) -> None:
    """Write the ids of each part to `<folder>/<part>.txt`, and those not trained on to `held-out.txt`."""
    parts = split_positions(dataset.positions(), **settings.model_dump())
    parts = {object_id: "test" if is_shown(object_id) else part for object_id, part in parts.items()}
    write_parts(folder, list(parts), list(parts.values()))
