"""`armillary evaluate`: what a checkpoint is worth on held-out objects, as a report, JSON and pictures.

Every section is kept as it is done (`ReportParts`) and embeddings are kept as shards, so the same command goes on where
it was interrupted, and makes only the report anew where nothing changed.
"""

import datetime
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..data.dataset import ObservationDataset
from ..data.parquet_files import replacing
from ..data.sky_split import PARTS
from ..data.token_store import TokenStore
from ..data.turned_tokens import open_turned
from ..models.foundation import FoundationModel
from ..training.metrics_log import console
from ..training.token_sources import check_tokens
from ..training.tokenizer_report.report import machine
from ..training.tokenizer_report.report_parts import ReportParts, fingerprint_of, plain, state_of, write_json
from .accuracy import PROBE, ZERO_SHOT, Accuracy
from .headline import headlines
from .label_efficiency import SupervisedRival, counts_of, frozen_curves
from .objects import EvaluationObjects, Subset
from .page import write_report
from .real_galaxies import measure_real_galaxies
from .retrieval import directions, light_of, measure_retrieval
from .retrieval_scores import GradedRelevance
from .settings import EvaluateSettings
from .transfer import measure_transfer, survey_pairs
from .vectors import VectorStore

FORMAT = 1
"""Rises when the code measures something else than before under the same name."""
NOT_MEASURED = {
    "output",
    "embeddings",
    "device",
    "batch_size",
    "supervised",
    "label_counts",
    "seeds",
    "subsets",
    "surveys",
    "num_train",
    "num_validation",
    "num_test",
}
"""Settings that change nothing in most sections, or are told to those that they change."""
OF_MODEL = {"checkpoint", "tokens", "turns"}
"""Settings that change nothing in the sections of baselines and networks."""


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Measure, or go on measuring; write `<output>/report.html`, `report.json`, `predictions.parquet` and `images/`.

    Returns what report.json holds. Raises ValueError where parts overlap, tokens are of other tokenizers, or too few
    objects have all that is compared.
    """
    start = time.monotonic()
    check_parts(settings.parts)
    dataset = ObservationDataset(settings.data)
    objects = EvaluationObjects(dataset, settings)
    model = FoundationModel.load(settings.checkpoint, settings.device)
    tokens = TokenStore(settings.tokens)
    check_tokens(tokens, model.tokenizers)
    output = Path(settings.output)
    turned = open_turned(tokens, settings.turns)
    vectors = VectorStore(model, tokens, output / "embeddings", settings.embeddings, settings.batch_size, turned)
    of_data = {
        "format": FORMAT,
        "parts": fingerprint_of(objects.ids),
        "data": [state_of(dataset, name) for name in sorted(objects.names)],
        "settings": settings.model_dump(mode="json", exclude=NOT_MEASURED | OF_MODEL),
    }
    of_model = of_data | {"model": model.model_id, "tokens": tokens.digest, "turns": settings.turns}
    sections = {True: ReportParts(output / "sections", of_model), False: ReportParts(output / "sections", of_data)}
    with _progress() as progress:
        results = _Work(objects, vectors, sections, progress).measure()
    results |= {"headlines": headlines(results, objects), "about": _about(settings, objects, model, start)}
    results = dict(plain(results))
    _write_predictions(output / "predictions.parquet", results, objects)
    write_report(output, results, objects)
    write_json(output / "report.json", without_predictions(results))
    console.print(f"report: {output / 'report.html'}")
    return results


def check_parts(folder: str) -> None:
    """Raise FileNotFoundError unless the folder holds a file of each part."""
    missing = [f"{part}.txt" for part in PARTS if not (Path(folder) / f"{part}.txt").is_file()]
    if missing:
        raise FileNotFoundError(f"{folder}: expected {', '.join(f'{part}.txt' for part in PARTS)}; missing: {missing}")


class _Work:
    """All sections in turn, with a bar for the whole and one for what is being done.

    `sections`: those of the model, and those that another model leaves as they are.
    """

    def __init__(
        self, objects: EvaluationObjects, vectors: VectorStore, sections: dict[bool, ReportParts], progress: Progress
    ):
        self.objects = objects
        self.vectors = vectors
        self.sections = sections
        self.settings = objects.settings
        self.progress = progress
        self._detail = progress.add_task("", total=None, visible=False)
        self._whole = progress.add_task("evaluate", total=None)
        self.seconds: dict[str, list[float]] = {}
        """How long each section took when it was measured, by the clock and of processors."""
        self._rival: SupervisedRival | None = None
        vectors.advance = self._show

    def measure(self) -> dict[str, Any]:
        """The results of all sections."""
        objects, vectors = self.objects, self.vectors
        accuracy = Accuracy(objects, vectors)
        pairs, transfers = directions(objects), survey_pairs(objects)
        networks = list(self._networks())
        total = 1 + len(objects.subsets) + len(networks) + 2 + len(objects.surveys) + len(pairs) + len(transfers)
        self.progress.update(self._whole, total=total)
        results: dict[str, Any] = {
            "baselines": self._section("baselines", None, accuracy.baselines, of_model=False),
            "subsets": {},
        }
        for subset in objects.subsets:
            results["subsets"][subset.name] = self._section(
                f"subset {subset.name}", [subset.modalities, objects.surveys], partial(accuracy.subset, subset)
            )
        results["real"] = self._section("real galaxies", None, partial(measure_real_galaxies, objects, vectors))
        results["retrieval"] = self._retrieval(pairs)
        results["transfer"] = [
            self._section(f"transfer {a.name} to {b.name}", None, partial(measure_transfer, objects, vectors, a, b))
            for a, b in transfers
        ]
        results["curves"] = self._curves(results["subsets"])
        results["networks"] = [self._network(*network) for network in networks]
        results["seconds"] = dict(self.seconds)
        return results

    def _section(
        self, name: str, depends_on: Any, measure: Callable[[], dict[str, Any]], of_model: bool = True
    ) -> dict[str, Any]:
        self.progress.update(self._whole, description=name)

        def timed() -> dict[str, Any]:
            start, cpu = time.monotonic(), time.process_time()
            result = measure()
            seconds = [round(time.monotonic() - start, 1), round(time.process_time() - cpu, 1)]
            return {"result": result, "seconds": seconds}

        found = self.sections[of_model].get(name, depends_on, timed)
        self.progress.advance(self._whole)
        self.progress.update(self._detail, visible=False)
        self.seconds[name] = found["seconds"]
        result = found["result"]
        return dict(result)

    def _show(self, title: str, done: int, total: int) -> None:
        self.progress.update(self._detail, description=f"  {title}", completed=done, total=total, visible=True)

    def _retrieval(self, pairs: list[tuple[Subset, Subset]]) -> list[dict[str, Any]]:
        objects, settings = self.objects, self.settings
        learners = objects.ids["train"][: settings.num_light]

        def light_section(name: str) -> dict[str, Any]:
            found = {
                "train": light_of(objects.dataset, name, learners),
                "test": light_of(objects.dataset, name, objects.ids["test"]),
            }
            return {part: np.round(values, 5).tolist() for part, values in found.items()}

        light = {}
        for name in objects.surveys:
            found = self._section(f"light {name}", None, partial(light_section, name), of_model=False)
            light[name] = {part: np.array(values) for part, values in found.items()}
        relevance = GradedRelevance(np.stack([objects.label(label, "test") for label in settings.labels], 1))
        return [
            self._section(
                f"retrieval {a.name} to {b.name}",
                None,
                partial(measure_retrieval, objects, self.vectors, a, b, relevance, light),
            )
            for a, b in pairs
        ]

    def _curves(self, subsets: dict[str, Any]) -> dict[str, Any]:
        objects, settings = self.objects, self.settings
        subset = _curve_subset(objects)
        label = settings.labels[0]
        if subset is None:
            return {}
        measured = subsets[subset.name][label]
        spaces = {PROBE: measured[PROBE]["chosen"]["space"], ZERO_SHOT: measured[ZERO_SHOT]["chosen"]["space"]}
        gallery = [Subset.parse(name, settings.photometry) for name in measured[ZERO_SHOT]["chosen"]["gallery"]]
        total = (len(counts_of(objects, label, settings.label_counts)) - 1) * settings.seeds + 1
        done = [0]

        def advance() -> None:
            done[0] += 1
            self._show("curves", done[0], total)

        return {
            label: self._section(
                f"curves {label}",
                [settings.label_counts, settings.seeds, subset.modalities, spaces, [part.name for part in gallery]],
                lambda: frozen_curves(objects, self.vectors, subset, label, spaces, gallery, advance),
            )
        }

    def _networks(self) -> Iterator[tuple[str, int, int]]:
        supervised = self.settings.supervised
        if supervised is None:
            return
        for label in supervised.labels:
            for count in counts_of(self.objects, label, supervised.label_counts):
                for seed in range(supervised.seeds):
                    yield label, count, seed

    def _network(self, label: str, count: int, seed: int) -> dict[str, Any]:
        supervised = self.settings.supervised
        assert supervised is not None
        rival = self._rival = self._rival or SupervisedRival(self.objects)
        total, done = rival.steps(count), [0]

        def advance(steps: int) -> None:
            done[0] += steps
            self._show(f"ResNet-18, {count} labels, seed {seed}", done[0], total)

        depends_on = supervised.model_dump(mode="json", exclude={"labels", "label_counts", "seeds"})
        return self._section(
            f"network {label} {count} {seed}",
            depends_on,
            lambda: {"label": label, **rival.measure(label, count, seed, advance)},
            of_model=False,
        )


def _curve_subset(objects: EvaluationObjects) -> Subset | None:
    """From what the label-efficiency curves predict: the images that the network sees, or the first subset."""
    supervised = objects.settings.supervised
    wanted = objects.subsets[0].name if supervised is None else supervised.modality
    return next((subset for subset in objects.subsets if subset.name == wanted), None)


def without_predictions(value: Any) -> Any:
    """Plain data without what is one number for each object."""
    if isinstance(value, dict):
        return {k: without_predictions(v) for k, v in value.items() if k not in ("predicted", "rows", "true")}
    return [without_predictions(item) for item in value] if isinstance(value, list) else value


def _write_predictions(path: Path, results: dict[str, Any], objects: EvaluationObjects) -> None:
    """All test predictions: object_id, label, subset, method, predicted, true."""
    columns: dict[str, list[Any]] = {n: [] for n in ("object_id", "label", "subset", "method", "predicted", "true")}

    def add(label: str, subset: str, method: str, scores: dict[str, Any]) -> None:
        rows = scores["rows"]
        truth = objects.label(label, "test")
        columns["object_id"] += [objects.ids["test"][row] for row in rows]
        columns["predicted"] += scores["predicted"]
        columns["true"] += truth[rows].tolist()
        for name, value in (("label", label), ("subset", subset), ("method", method)):
            columns[name] += [value] * len(rows)

    for label, methods in results["baselines"].items():
        for method, scores in methods.items():
            add(label, "photometry", method, scores)
    for subset, labels in results["subsets"].items():
        for label, methods in labels.items():
            for method, scores in methods.items():
                add(label, subset, method, scores)
    for network in results["networks"]:
        method = f"ResNet-18, {network['num_labels']} labels, seed {network['seed']}"
        modality = "" if objects.settings.supervised is None else objects.settings.supervised.modality
        add(network["label"], modality, method, network)
    with replacing(path) as stream:
        pq.write_table(pa.table(columns), stream, compression="zstd")


def _about(
    settings: EvaluateSettings, objects: EvaluationObjects, model: FoundationModel, start: float
) -> dict[str, Any]:
    return {
        "model_id": model.model_id,
        "checkpoint": settings.checkpoint,
        "num_weights": sum(p.numel() for p in model.transformer.parameters()),
        "modalities": [modality.name for modality in model.modalities],
        "is_simulated": objects.is_simulated,
        "num_objects": objects.describe(),
        "settings": settings.model_dump(mode="json"),
        "machine": f"{machine(settings.device)}, {_processor()}, torch {torch.__version__}",
        "command": shlex.join(["armillary", *sys.argv[1:]]),
        "finished": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds_of_this_start": round(time.monotonic() - start, 1),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield progress
