"""Samples per second of pretraining, by the loop itself, against plain code for the same model in the same run.

Ours is what `armillary pretrain` runs: tokens read from a store on disk, masks drawn on the device, forward and
backward pass, optimiser, logs. A figure is the median of the rows of the log after the first, which has compilation in
it. The plain code (`references/plain_pretraining.py`) is what is usual: eager, attention by hand, all tokens embedded
and then chosen, masks drawn sample by sample on the CPU, losses read at each step. It has self-attention among the
targets, which ours has not; `--equal` leaves that away. On GPUs both run in bf16. On CPUs plain code runs in float32,
for autocast is commonly switched on for GPUs alone; `ratio_at_same_precision` is against plain code in the precision of
ours.

Tokens are made up (`references/made_up_store.py`), as many for each object as tokenizers of default settings give.

    python benchmarks/pretrain_step.py [--quick] [--size base] [--batch 512] [--variants name ...] [--folder FOLDER]

Variants of ours, each measured by itself: `eager`, `compiled`, `masked` (attention with masks instead of runs),
`narrow` (what passes from block to block in bf16), `recomputed` (activations worked out again), `aion` and `dirichlet`
(other mask schemes), `muon`.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from references.made_up_store import made_up_store
from references.plain_pretraining import PlainPretraining

from armillary.data.token_loader import TokenLoader, TokenSource
from armillary.data.token_store import TokenStore
from armillary.models.masked_transformer import MaskedTransformer, MaskedTransformerConfig
from armillary.tokenizers import blocks
from armillary.training.loop import LoopSettings, choose_precision, make_fabric, train
from armillary.training.pretrain_objective import PretrainObjective
from armillary.training.profiling import SKIPPED, WARMUP
from armillary.training.run_record import read_metrics

BUDGETS = {"nano": (128, 64)}
DEFAULT_BUDGETS = (256, 128)
BATCHES = {"nano": 64, "tiny": 256, "base": 512, "large": 256, "xl": 64}
"""Objects of a step on one GPU."""


class Enough(Exception):  # noqa: N818 - not an error: so many steps were wanted
    """Ends a run without saving it."""


class Narrow(MaskedTransformer):
    """What passes from block to block is in the precision of autocast, not in float32."""

    def _through(self, block: torch.nn.Module, *arguments: Any) -> torch.Tensor:
        return super()._through(block, blocks.autocast_once(arguments[0]), *arguments[1:])


class Timed(PretrainObjective):
    """Ends after `steps` steps."""

    steps = 0

    def batches(self, first_step: int) -> Generator[Any, None, None]:
        """The batches of the steps, then Enough."""
        for content in super().batches(first_step):
            if content[0] == self.steps:
                raise Enough
            yield content


def measure_ours(
    store: TokenStore,
    features: dict[str, torch.Tensor],
    size: str,
    batch: int,
    rows: int,
    every: int,
    variant: str,
    profile: Path | None = None,
) -> dict[str, float]:
    """The log's figures of one variant: medians over `rows` rows of `every` steps each.

    `profile`: a file for the table of what some more steps spent their time on.
    """
    is_gpu = torch.cuda.is_available()
    loop = LoopSettings(
        steps=1_000_000,
        batch_size=batch,
        log_every=every,
        checkpoint_every=1_000_000,
        loggers=(),
        optimizer="muon" if variant == "muon" else "adamw",
    )
    fabric = make_fabric(loop)
    torch.manual_seed(0)
    model = Narrow if variant == "narrow" else MaskedTransformer
    transformer = model(MaskedTransformerConfig.of_size(size, features)).train()
    transformer.codes.set_features(features)
    transformer.gradient_checkpointing = variant == "recomputed"
    loader = TokenLoader([TokenSource(store)], batch, 0, mix="batches", pin_memory=is_gpu)
    objective = Timed(
        transformer,
        loader,
        *BUDGETS.get(size, DEFAULT_BUDGETS),
        masks=variant if variant in ("aion", "dirichlet") else "even",
        compiled=variant == "compiled" or (is_gpu and variant != "eager"),
    )
    objective.steps = (rows + 1) * every
    devices = blocks.RUNS_DEVICES
    if variant == "masked":
        blocks.RUNS_DEVICES = ()
    with tempfile.TemporaryDirectory() as run:
        with contextlib.suppress(Enough):
            train(fabric, objective, loop, run, title=f"{size} {variant}")
        found = read_metrics(Path(run) / "metrics.csv")
        if profile is not None:
            objective.steps = SKIPPED + WARMUP + 3
            with contextlib.suppress(Enough):
                train(fabric, objective, loop.model_copy(update={"profile": 3}), Path(run) / "again", title="profile")
            shutil.copy(Path(run) / "again" / "profile" / "operators.txt", profile)
    blocks.RUNS_DEVICES = devices
    names = ("examples_per_second", "tokens_per_second", "model_flops_utilization", "waiting_for_data", "memory_gib")
    figures = {n: statistics.median(r[n] for r in found[1:]) for n in names if n in found[-1]}
    return {**figures, "first_seconds": found[0]["seconds"], "fill": found[-1]["fill"], "loss": found[-1]["loss"]}


def measure_plain(
    store: TokenStore, features: dict[str, torch.Tensor], size: str, batch: int, steps: int, precision: str, equal: bool
) -> float:
    """Samples per second of the plain code: median over steps after two."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = TokenLoader([TokenSource(store)], batch, 0)
    plain = PlainPretraining(
        size,
        {name: len(values) for name, values in features.items()},
        loader.modalities,
        *BUDGETS.get(size, DEFAULT_BUDGETS),
        device,
        precision=precision,
        decoder_self_attention=not equal,
    )
    random, seconds = np.random.default_rng(0), []
    with contextlib.closing(iter(loader)) as samples:
        for _ in range(steps + 2):
            began = time.perf_counter()
            plain.step(next(samples), random)  # reads its losses, so that it waits for the device
            seconds.append(time.perf_counter() - began)
    return batch / statistics.median(seconds[2:])


def main() -> None:
    """Measure, and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="nano, a few steps")
    parser.add_argument("--size", help="default: base on a GPU, nano elsewhere")
    parser.add_argument("--batch", type=int, help="objects of a step")
    parser.add_argument("--plain-batch", type=int, help="of the plain code, if it needs more memory")
    parser.add_argument("--variants", nargs="*", help="of ours; the first is compared with the plain code")
    parser.add_argument("--equal", action="store_true", help="no self-attention among the plain code's targets")
    parser.add_argument("--profile", type=Path, help="text file for a table of operators of the first variant")
    parser.add_argument("--folder", type=Path, help="where the store is written; default: a temporary folder")
    options = parser.parse_args()
    is_gpu = torch.cuda.is_available()
    size = options.size or ("base" if is_gpu and not options.quick else "nano")
    batch = options.batch or BATCHES[size]
    rows, every = (3, 2) if options.quick else (4, 10 if is_gpu else 3)
    variants = options.variants or (["compiled" if is_gpu else "eager"])
    precision = choose_precision("auto")
    figures: dict[str, Any] = {
        "size": size,
        "batch": batch,
        "precision": precision,
        "device": torch.cuda.get_device_name() if is_gpu else f"{os.cpu_count()} CPU cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        store, features = made_up_store(folder / "store", 2000 if not is_gpu else 20_000, 0)
        for variant in variants:
            profile = options.profile if variant == variants[0] else None
            found = measure_ours(store, features, size, batch, rows, every, variant, profile)
            figures[variant] = {name: round(value, 4) for name, value in found.items()}
            print(variant, figures[variant], flush=True)
        ours = figures[variants[0]]["examples_per_second"]
        for name in dict.fromkeys((precision if is_gpu else "32-true", precision)):
            rate = measure_plain(store, features, size, options.plain_batch or batch, rows * every, name, options.equal)
            figures[f"plain_{name}"] = round(rate, 2)
            print(f"plain {name}: {rate:.2f} samples/s", flush=True)
    figures["ratio_to_reference"] = round(ours / figures[f"plain_{precision if is_gpu else '32-true'}"], 2)
    figures["ratio_at_same_precision"] = round(ours / figures[f"plain_{precision}"], 2)
    figures["loader_share"] = figures[variants[0]]["waiting_for_data"]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
