"""Samples per second of the loaders, against bare reads of the same arrays in the same run.

Tokens: objects with 576 image tokens, half of them with 273 spectrum tokens. The loader shuffles, looks up who has what
and can resume anywhere. A *bare memory-mapped read* takes batches of random objects out of one NumPy memory map for
each modality, `array[rows]`, and does nothing else. A *sequential copy* takes consecutive rows, which nobody can train
on: it is the speed of memory. Batches are of 8192 objects, as in configs/pretrain/base.yaml, and of 512. Arrow, Parquet
and `datasets` stand for the usual ways; they read images alone. Pairs: images of 4 x 96 x 96 pixels and spectra of
7781, with inverse variance and mask, out of an Armillary dataset in Parquet, checked, as tensors.

All take turns; a figure is the median of the turns, by the clock (`per_s`) and by CPU seconds of all threads.

    python benchmarks/loader.py [--quick] [--folder FOLDER]
"""

import argparse
import contextlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import DatasetWriter
from armillary.data.modalities import modality
from armillary.data.observation_loader import ObservationLoader
from armillary.data.observations import ImageObservation, SpectrumObservation
from armillary.data.token_loader import TokenLoader, TokenSource
from armillary.data.token_manifest import finish_store
from armillary.data.token_shards import write_object_shard, write_token_shard
from armillary.data.token_store import TokenStore

IMAGE, SPECTRUM = modality("image/legacysurvey"), modality("spectrum/desi")
NUM_TOKENS = {IMAGE.name: 576, SPECTRUM.name: 273}
SHARD_SIZE = 16_384
SMALL, LARGE = 512, 8192
"""Sizes of batches."""


def write_tokens(folder: Path, num_objects: int) -> None:
    """A token store, and the same codes as one array for each modality, an Arrow and a Parquet file of the images."""
    random = np.random.default_rng(0)
    num_shards = -(-num_objects // SHARD_SIZE)
    codes: dict[str, list[np.ndarray]] = {name: [] for name in NUM_TOKENS}
    for index in range(num_shards):
        count = min(SHARD_SIZE, num_objects - index * SHARD_SIZE)
        ids = [f"object{index * SHARD_SIZE + row}" for row in range(count)]
        objects = write_object_shard(folder / "store", index, num_shards, ids, random.random((count, 2)))
        for declared in (IMAGE, SPECTRUM):
            has = np.ones(count, bool) if declared is IMAGE else random.random(count) < 0.5
            num_rows, num_tokens = int(has.sum()), NUM_TOKENS[declared.name]
            arrays = {
                "codes": random.integers(0, 4000, (num_rows, num_tokens), dtype=np.int16),
                "mask": np.ones((num_rows, num_tokens), bool),
                "positions": np.zeros((num_rows, num_tokens, 3), np.float32),
                "instrument": np.zeros((num_rows, 11), np.float32),
            }
            rows = np.where(has, np.cumsum(has) - 1, -1)
            names = {"tokenizer_hash": "random", "objects": objects}
            write_token_shard(folder / "store", declared, index, rows, arrays, **names)
            codes[declared.name].append(arrays["codes"])
    assert finish_store(folder / "store", "benchmark", {})
    for name, parts in codes.items():
        np.save(folder / f"{name.split('/')[0]}.npy", np.concatenate(parts))
    images = np.load(folder / "image.npy", mmap_mode="r")
    table = pa.table({"codes": pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), images.shape[1])})
    with pa.OSFile(str(folder / "image.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=SMALL)
    pq.write_table(table, folder / "image.parquet", compression="zstd", compression_level=1, row_group_size=8192)


def token_readers(folder: Path) -> dict[str, Callable[[], Iterator[int]]]:
    """The ways to read tokens: each begins a stream that gives the number of objects of each batch."""
    image, spectrum = (np.load(folder / f"{kind}.npy", mmap_mode="r") for kind in ("image", "spectrum"))
    random = np.random.default_rng(1)
    orders = [random.permutation(len(array)) for array in (image, spectrum)]
    store = TokenStore(folder / "store", verify=False)
    table = pa.ipc.open_file(pa.memory_map(str(folder / "image.arrow"))).read_all()

    def bare(size: int) -> Iterator[int]:
        for batch in itertools.cycle(range(len(image) // size - 1)):
            torch.from_numpy(image[orders[0][batch * size : (batch + 1) * size]])
            torch.from_numpy(spectrum[orders[1][batch * size // 2 : (batch + 1) * size // 2]])
            yield size

    def copy(size: int) -> Iterator[int]:
        for batch in itertools.cycle(range(len(image) // size - 1)):
            torch.from_numpy(np.array(image[batch * size : (batch + 1) * size]))
            torch.from_numpy(np.array(spectrum[batch * size // 2 : (batch + 1) * size // 2]))
            yield size

    loaders = {size: TokenLoader([TokenSource(store)], size, seed=0) for size in (SMALL, LARGE)}

    def arrow() -> Iterator[int]:
        for batch in itertools.cycle(range(len(table) // SMALL)):
            column = table["codes"].slice(batch * SMALL, SMALL).combine_chunks()
            torch.from_numpy(column.flatten().to_numpy().reshape(SMALL, -1).copy())
            yield SMALL

    def parquet() -> Iterator[int]:
        while True:
            for batch in pq.ParquetFile(folder / "image.parquet").iter_batches(SMALL):
                torch.from_numpy(batch["codes"].flatten().to_numpy().reshape(len(batch), -1).copy())
                yield len(batch)

    def streaming() -> Iterator[int]:
        while True:
            yield from map(len, stream(folder / "image.parquet"))

    readers: dict[str, Callable[[], Iterator[int]]] = {}
    for size, loader in loaders.items():
        readers |= {
            f"loader_{size}": lambda loader=loader: map(len, loader),
            f"memmap_{size}": lambda size=size: bare(size),
            f"copy_{size}": lambda size=size: copy(size),
        }
    return readers | {"arrow": arrow, "parquet": parquet, "datasets_streaming": streaming}


def stream(pattern: Path) -> Iterator[Any]:
    """Batches of the usual stream: Parquet files through `datasets` with a shuffle buffer, as torch tensors."""
    found = datasets.load_dataset("parquet", data_files=str(pattern), split="train", streaming=True)
    for batch in found.shuffle(seed=0, buffer_size=1000).with_format("torch").batch(SMALL // 4):
        yield next(iter(batch.values()))


def write_pairs(folder: Path, num_objects: int) -> None:
    """An Armillary dataset of images and spectra of the same objects, and the same images and spectra as arrays."""
    random = np.random.default_rng(0)
    ids = [f"object{row}" for row in range(num_objects)]
    sky = {"ra": random.uniform(0, 360, num_objects), "dec": random.uniform(-60, 60, num_objects)}
    flux = random.normal(size=(num_objects, 4, 96, 96)).astype(np.float32)
    spectra = random.normal(size=(num_objects, 7781)).astype(np.float32)
    grid = np.linspace(3600, 9824, 7781)
    with DatasetWriter(folder / "data") as writer:
        writer.write(ImageObservation(IMAGE, ids, flux, ("g", "r", "i", "z"), np.ones_like(flux), **sky))
        writer.write(SpectrumObservation(SPECTRUM, ids, spectra, grid, np.ones_like(spectra), **sky))
    for name, array in (("flux", flux), ("spectra", spectra)):
        np.save(folder / f"{name}.npy", array)
        for field, same in (("inverse_variance", np.ones_like(array)), ("mask", np.ones(array.shape, bool))):
            np.save(folder / f"{name}_{field}.npy", same)


def pair_readers(folder: Path) -> dict[str, Callable[[], Iterator[float]]]:
    """The ways to read image + spectrum pairs."""
    names = [f"{name}{field}.npy" for name in ("flux", "spectra") for field in ("", "_inverse_variance", "_mask")]
    arrays = [np.load(folder / name, mmap_mode="r") for name in names]
    order = np.random.default_rng(1).permutation(len(arrays[0]))
    dataset, dataset_names = ObservationDataset(folder / "data"), [IMAGE.name, SPECTRUM.name]
    loader = ObservationLoader(dataset, dataset_names, 32, seed=0)

    def bare() -> Iterator[float]:
        for batch in itertools.cycle(range(len(order) // 32)):
            for array in arrays:
                torch.from_numpy(array[order[batch * 32 : (batch + 1) * 32]])
            yield 32

    def paired() -> Iterator[float]:
        with contextlib.closing(iter(loader)) as batches:
            for batch in batches:
                yield len(batch) / 2  # a batch is of images or of spectra, in turn

    def parquet() -> Iterator[float]:
        while True:
            for path in itertools.chain.from_iterable(zip(*(dataset.files(n) for n in dataset_names), strict=True)):
                with pq.ParquetFile(path.path, page_checksum_verification=True) as file:
                    for batch in file.iter_batches(32):
                        yield len(batch) / 2

    def streaming() -> Iterator[float]:
        while True:
            for kind in ("image", "spectrum"):
                files = str(folder / "data" / kind / "*" / "dataset" / "**" / "Npix=*.parquet")
                found = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
                for batch in found.select_columns(["flux", "inverse_variance", "mask"]).with_format("numpy").batch(16):
                    yield len(batch["flux"]) / 2

    return {
        "pairs_loader": paired,
        "pairs_memmap": bare,
        "pairs_parquet": parquet,
        "pairs_datasets_streaming": streaming,
    }


def measure(
    readers: dict[str, Callable[[], Iterator[float]]], num_samples: dict[str, int], turns: int
) -> dict[str, dict[str, float]]:
    """Samples per second and per CPU second of each reader: the median of some turns, after one that does not count."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for turn in range(turns + 1):
        for name, begin in readers.items():
            batches, count = begin(), 0
            wall, cpu = time.perf_counter(), time.process_time()
            while count < num_samples.get(name, num_samples["others"]):
                count += next(batches)
            if turn:
                found[name].append((count / (time.perf_counter() - wall), count / (time.process_time() - cpu)))
            if hasattr(batches, "close"):
                batches.close()
            del batches
    return {
        name: dict(zip(("per_s", "per_cpu_s"), np.median(rates, axis=0).tolist(), strict=True))
        for name, rates in found.items()
    }


def main() -> None:
    """Run, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer objects and turns")
    parser.add_argument("--folder", type=Path, help="where to write some GB; by default a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    num_objects, num_pairs, turns = (200_000, 256, 3) if options.quick else (1_000_000, 2048, 7)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_tokens(folder, num_objects)
        slow = {"datasets_streaming": 2000, "parquet": 50_000}
        rates = measure(token_readers(folder), {"others": 1_000_000, **slow}, turns)
        write_pairs(folder, num_pairs)
        slow = {"pairs_datasets_streaming": 64}
        rates |= measure(pair_readers(folder), {"others": num_pairs, **slow}, min(turns, 3))
    record: dict[str, float] = {}
    for size, suffix in ((LARGE, ""), (SMALL, f"_batch_{SMALL}")):
        for unit, by_cpu in (("per_s", ""), ("per_cpu_s", "_cpu")):
            ours, bare, copy = (rates[f"{name}_{size}"][unit] for name in ("loader", "memmap", "copy"))
            record[f"ratio_to_memmap{suffix}{by_cpu}"] = round(ours / bare, 2)
            record[f"ratio_to_sequential_copy{suffix}{by_cpu}"] = round(ours / copy, 2)
    for name, rate in rates.items():
        record |= {f"{name}_{unit}": round(value) for unit, value in rate.items()}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
