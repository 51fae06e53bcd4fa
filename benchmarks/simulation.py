"""Objects that one core simulates in a minute: two images, two spectra and all numbers of each, with everything on.

Everything: galaxies with structure, stars, quasars, neighbours, noise, bad pixels. Measured are CPU seconds of one
thread in batches, after a first batch that makes tables; the best of some runs. The shares of the stages are of the sky
of `data/sky.yaml`. Where there is a GPU, its objects per second of wall time are measured too: all of it, and spectra
and noiseless images alone, without the noise that one CPU core draws.

    python benchmarks/simulation.py [--quick]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from armillary.data.modalities import modality
from armillary.data.simulation.observe_images import noiseless_images
from armillary.data.simulation.sky import SimulatedSky, SkySettings
from armillary.data.simulation.write_sky import write_simulated_dataset
from armillary.settings import find_config, load_settings

BATCH = 128
SKIES = ("data/sky.yaml", "data/deep_sky.yaml", "data/instruments.yaml")


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU seconds that `run` took."""
    start = time.process_time()
    run()
    return time.process_time() - start


def objects_per_minute(sky: SimulatedSky, repeats: int) -> float:
    """Objects of this sky in a CPU core-minute, all modalities of its settings."""
    sky.batch(range(BATCH))
    seconds = [cpu_seconds(lambda n=n: sky.batch(range(n * BATCH, (n + 1) * BATCH))) for n in range(1, repeats + 1)]
    return 60 * BATCH / min(seconds)


def shares(sky: SimulatedSky, repeats: int) -> dict[str, float]:
    """Share of CPU time of drawing objects with their spectra, and of each kind of observation."""
    spent: dict[str, float] = {}
    for number in range(repeats):
        rows = range(number * BATCH, (number + 1) * BATCH)
        spent["objects"] = spent.get("objects", 0) + cpu_seconds(lambda rows=rows: sky.objects(rows))
        objects = sky.objects(rows)
        for name in sky.settings.modalities:
            stage = "scalars" if name.startswith("scalar") else name
            spent[stage] = spent.get(stage, 0) + cpu_seconds(lambda name=name, o=objects: sky.observe(o, name))
    total = sum(spent.values())
    return {stage: round(seconds / total, 3) for stage, seconds in spent.items()}


def written_per_minute(settings: SkySettings) -> float:
    """Objects in a CPU core-minute, when they are written to disk too."""
    with tempfile.TemporaryDirectory() as folder:
        return 60 * settings.num_objects / cpu_seconds(lambda: write_simulated_dataset(settings, Path(folder) / "sky"))


def on_gpu(settings: SkySettings, batch: int) -> dict[str, float]:
    """Objects a second of wall time on the first CUDA device: all, and what runs on the device alone."""
    sky = SimulatedSky(settings, device="cuda")
    cameras = [(modality(name), size) for name, size in settings.image_sizes.items()]

    def noiseless(rows: range) -> None:
        objects = sky.objects(rows)
        for camera, size in cameras:
            noiseless_images(objects, camera, size, sky.neighbours(objects, 10.0))

    found = {}
    for name, run in (("objects_per_second_gpu", sky.batch), ("noiseless_per_second_gpu", noiseless)):
        run(range(batch))
        torch.cuda.synchronize()
        start = time.perf_counter()
        run(range(batch, 2 * batch))
        torch.cuda.synchronize()
        found[name] = round(batch / (time.perf_counter() - start), 1)
    return found


def main() -> None:
    """Measure, and print one line of JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer batches: under a minute on two cores")
    options = parser.parse_args()
    repeats = 3 if options.quick else 12
    torch.set_num_threads(1)
    found: dict[str, Any] = {"batch": BATCH}
    for config in SKIES:
        settings = load_settings(SkySettings, find_config(config))
        rate = objects_per_minute(SimulatedSky(settings), repeats)
        name = Path(config).stem
        found[f"objects_per_core_minute_{name}"] = round(rate)
        print(f"{name}: {rate:.0f} objects per CPU core-minute")
    settings = load_settings(SkySettings, find_config(SKIES[0]))
    found["shares"] = shares(SimulatedSky(settings), repeats)
    plain = settings.model_copy(update={"neighbours": False, "star_fraction": 0.0, "quasar_fraction": 0.0})
    found["objects_per_core_minute_without_neighbours"] = round(objects_per_minute(SimulatedSky(plain), repeats))
    count = 500 if options.quick else 2000
    written = written_per_minute(settings.model_copy(update={"num_objects": count}))
    found["objects_per_core_minute_written"] = round(written)
    # Each shard brings another camera and spectrograph, with tables of their own.
    random = load_settings(SkySettings, find_config(SKIES[2]))
    written = written_per_minute(random.model_copy(update={"num_objects": count}))
    found["objects_per_core_minute_written_instruments"] = round(written)
    if torch.cuda.is_available():
        found |= on_gpu(settings, 1024)
        found["gpu"] = torch.cuda.get_device_name()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
