"""`armillary tokenizer-report`: how good tokenizers are on objects that they never saw, as tables and pictures.

Every modality, every point of the token economy and every instrument held out is measured in turn, and kept as a part
(`report_parts.py`): the same command goes on where it was interrupted, and does nothing where nothing changed.
"""

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from ...data.dataset import ObservationDataset
from ...data.instruments import Spectrograph
from ...data.modalities import MODALITIES, Modality
from ...data.observations import ImageObservation, ObservationError
from ...data.parquet_files import replacing
from ...data.stacking import stack
from ...tokenizers.token_grid import Tokenizer
from ..metrics_log import console
from ..tokenizers import load_tokenizers, tokenizer_hash
from . import charts
from .another_camera import measure_another_camera
from .example_pictures import QUANTILES, choose_examples, image_examples, spectrum_examples
from .held_out_instrument import measure_held_out, most_different
from .held_out_objects import choose_rows, choose_training_rows, read_held_out, read_rows
from .page import insert_between_markers, report_page
from .pixel_measures import PixelMeasures
from .pixel_summary import summarise
from .principal_components import PrincipalComponents
from .real_files import measure_real, real_observations
from .report_parts import ReportParts, hash_of_code, plain, state_of, write_json
from .settings import HeldOutInstrument, TokenizerReportSettings
from .simulated_truth import SimulatedTruth
from .training_record import read_training_record
from .value_measures import measure_values

PIXEL_KINDS = ("image", "spectrum")
REDSHIFT = "scalar/redshift"


def tokenizer_report(settings: TokenizerReportSettings) -> dict[str, Any]:
    """Measure, or go on measuring, and write `<report>/report.json`, `report.md` and `images/*.png`.

    With `docs`, that page and its pictures are renewed as well. Returns what report.json holds. Raises ValueError for
    modalities without data or tokenizer, for instruments that were not held out, and for a page without its markers.
    """
    if settings.docs is not None:
        _renewed(Path(settings.docs), "")  # to know before hours of work that it can be
    work = _Work(settings)
    with Progress(console=console) as progress:
        work.progress = progress
        results = work.measure()
    folder = Path(settings.report)
    pictures = work.pictures | _charts(results)
    _write_pictures(folder / "images", pictures)
    page = report_page(results, {name: f"images/{name}.png" for name in pictures})
    _write_text(folder / "report.md", f"# Report card of the tokenizers\n\n{page}")
    write_json(folder / "report.json", results)
    if settings.docs is not None:
        docs = Path(settings.docs)
        _write_pictures(docs.parent / "images" / "tokenizers", pictures)
        page = report_page(results, {name: f"images/tokenizers/{name}.png" for name in pictures})
        _write_text(docs, _renewed(docs, page))
    return results


class _Work:
    """What the parts of a report share; `measure` makes all of them."""

    def __init__(self, settings: TokenizerReportSettings):
        self.settings = settings
        self.dataset = ObservationDataset(settings.data)
        self.tokenizers = self._load(settings.tokenizers)
        self.truth = SimulatedTruth.of_dataset(settings.data)
        self.held_out = read_held_out(settings.held_out)
        self.parts = ReportParts(Path(settings.report) / "parts", hash_of_code())
        self.modalities, self.left_out = self._choose_modalities()
        names = [m.name for m in self.dataset.modalities]
        self.redshifts = self.dataset.scalars([REDSHIFT])[REDSHIFT] if REDSHIFT in names else {}
        self.pictures: dict[str, bytes] = {}
        self.progress = Progress(disable=True)

    def measure(self) -> dict[str, Any]:
        """All parts, as plain data."""
        results: dict[str, Any] = {
            "dataset": str(self.settings.data),
            "sky": None if self.truth is None else self.truth.sky.settings.model_dump(mode="json"),
            "held_out": None if self.held_out is None else len(self.held_out),
            "settings": self.settings.model_dump(mode="json"),
            "machine": machine(self.settings.device),
            "tokenizers": {kind: tokenizer_hash(tokenizer) for kind, tokenizer in self.tokenizers.items()},
            "left_out": self.left_out,
            "seen_objects": self._seen_objects(),
            "unseen_instruments": self._unseen_instruments(),
            "pixels": {},
            "values": {},
        }
        for modality in self.modalities:
            if modality.kind in PIXEL_KINDS:
                results["pixels"][modality.name] = self._pixels(modality.name, self.tokenizers[modality.kind], "part")
                self._show_examples(modality.name, results["pixels"][modality.name])
            else:
                results["values"][modality.name] = self._values(modality)
        results["economy"] = self._economy(results["pixels"])
        results["held_out_instruments"] = {
            held_out.modality: self._held_out_instrument(held_out) for held_out in self.settings.held_out_instruments
        }
        results["another_camera"] = self._another_camera()
        results["real"] = self._real() if self.settings.real_files else []
        return dict(plain(results))

    def _load(self, folder: str) -> dict[str, Tokenizer]:
        return {kind: t.to(self.settings.device) for kind, t in load_tokenizers(folder).items()}

    def _choose_modalities(self) -> tuple[list[Modality], dict[str, str]]:
        """What is measured; and what could be and is not, with the reason."""
        chosen, left_out = [], {}
        for modality in self.dataset.modalities:
            if self.settings.modalities and modality.name not in self.settings.modalities:
                continue
            try:
                self.tokenizers[modality.kind].vocabulary_size(modality)
                self._rows(modality.name)
                chosen.append(modality)
            except KeyError:
                left_out[modality.name] = f"no tokenizer of kind {modality.kind}"
            except ObservationError as error:  # not what a tokenizer was fitted to, or no object held out
                left_out[modality.name] = str(error)
        unknown = sorted(set(self.settings.modalities) - {m.name for m in chosen})
        if unknown or not chosen:
            known = [m.name for m in self.dataset.modalities if m.kind in self.tokenizers]
            why = "".join(f"; {name}: {reason}" for name, reason in left_out.items())
            raise ValueError(f"no data or no tokenizer for {unknown or 'anything'}; there are both for {known}{why}")
        return chosen, left_out

    def _rows(self, name: str) -> np.ndarray:
        rows = choose_rows(self.dataset, name, self.held_out, self.settings.num_objects)
        if not len(rows):
            raise ObservationError(f"{self.dataset.folder}: no held-out object has {name}")
        return rows

    def _batches(self, name: str, rows: np.ndarray, title: str) -> Iterator[Any]:
        task = self.progress.add_task(title, total=len(rows))
        for batch in read_rows(self.dataset, name, rows, self.settings.batch_size):
            yield batch
            self.progress.advance(task, len(batch))

    def _depends_on(self, name: str, rows: np.ndarray, *tokenizers: Any) -> dict[str, Any]:
        """What every part depends on."""
        of_tokenizers = [tokenizer_hash(tokenizer) for tokenizer in tokenizers]
        chosen = {"batch_size", "device", "source_sigma", "bright_magnitude", "label_counts"}
        chosen |= {"baseline_objects", "baseline_data"}
        return {
            "rows": rows.tolist(),
            "files": state_of(self.dataset, name),
            "tokenizers": of_tokenizers,
            "sky": None if self.truth is None else self.truth.sky.settings.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json", include=chosen),
            "threads": torch.get_num_threads(),
        }

    def _pixels(self, name: str, tokenizer: Tokenizer, prefix: str, *, baseline: bool = True) -> dict[str, Any]:
        """The scores of a tokenizer on one modality of images or spectra."""
        rows = self._rows(name)

        def measure() -> dict[str, Any]:
            components = self._components(name, tokenizer) if baseline else None
            measures = PixelMeasures(tokenizer, self.truth, self.settings.source_sigma, components)
            for batch in self._batches(name, rows, f"{name}, {prefix}" if prefix != "part" else name):
                measures.add(batch)
            return summarise(measures, self.redshifts, self.settings.bright_magnitude, self.settings.label_counts)

        depends_on = self._depends_on(name, rows, tokenizer) | {"baseline": baseline}
        return self.parts.get(f"{prefix}-{name}", depends_on, measure)

    def _components(self, name: str, tokenizer: Tokenizer) -> PrincipalComponents | None:
        """Principal components of objects that are not held out, as many as an object has tokens; None without any."""
        dataset, count = self.dataset, self.settings.baseline_objects
        if self.settings.baseline_data is None:
            rows = choose_training_rows(dataset, name, self.held_out, count)
        else:
            dataset = ObservationDataset(self.settings.baseline_data)
            known = any(m.name == name for m in dataset.modalities)
            rows = choose_rows(dataset, name, None, count) if known else np.empty(0, np.int64)
        if len(rows) < 2:
            return None
        batches = list(read_rows(dataset, name, rows, self.settings.batch_size))
        if len({tuple(batch.flux.shape[1:]) for batch in batches}) > 1:
            return None
        num_tokens = round(float(tokenizer.encode(batches[0]).mask.sum(1).float().mean()))
        return PrincipalComponents(stack(batches), num_tokens)

    def _show_examples(self, name: str, summary: Mapping[str, Any]) -> None:
        """Draw objects at quantiles of chi2."""
        chi2 = np.array([np.nan if c is None else c for c in summary["object_chi2"]], np.float64)
        rows = choose_examples(chi2, QUANTILES[name.partition("/")[0]])
        ids = [summary["object_id"][row] for row in rows]
        observation: Any = self.dataset.read(name, ids)
        notes = [f"chi2 {chi2[row]:.2f}" for row in rows]
        true = None if self.truth is None else self.truth.pixels(observation)
        self.pictures[f"{name.replace('/', '-')}"] = self._examples(observation, true, notes)

    def _examples(self, observation: Any, true: Any, notes: list[str]) -> bytes:
        tokenizer: Any = self.tokenizers[observation.modality.kind]
        made = tokenizer.decode(tokenizer.encode(observation), observation)
        draw: Callable[..., bytes] = image_examples if isinstance(observation, ImageObservation) else spectrum_examples
        return draw(observation, made, true, notes)

    def _values(self, modality: Modality) -> dict[str, Any]:
        """The scores of a tokenizer on one modality of scalars or coefficients."""
        rows, tokenizer = self._rows(modality.name), self.tokenizers[modality.kind]
        # Numbers are small: a batch holds many objects.
        batches = read_rows(self.dataset, modality.name, rows, max(1024, self.settings.batch_size))
        depends_on = self._depends_on(modality.name, rows, tokenizer)
        return self.parts.get(f"part-{modality.name}", depends_on, lambda: measure_values(tokenizer, batches))

    def _economy(self, measured: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One point for each set of tokenizers and modality, the reported ones first."""
        points = [_point("this one", name, summary) for name, summary in measured.items()]
        for budget in self.settings.economy:
            tokenizers = self._load(budget.tokenizers)
            for modality in self.modalities:
                if modality.kind in PIXEL_KINDS and modality.kind in tokenizers:
                    prefix = f"economy-{budget.label}"
                    summary = self._pixels(modality.name, tokenizers[modality.kind], prefix, baseline=False)
                    points.append(_point(budget.label, modality.name, summary))
        return points

    def _held_out_instrument(self, held_out: HeldOutInstrument) -> dict[str, Any]:
        name = held_out.modality
        rows = self._rows(name)
        modality = {m.name: m for m in self.dataset.modalities}[name]
        tokenizer, control = (self._load(f)[modality.kind] for f in (held_out.tokenizers, held_out.control))
        record = read_training_record(held_out.tokenizers, modality.kind)
        if record is not None and name in record.modalities:
            raise ValueError(
                f"{held_out.tokenizers}: expected tokenizers that never saw {name}; they were trained on it"
            )
        other = self._mistaken_for(modality, held_out.mistaken_for)

        def measure() -> dict[str, Any]:
            batches = self._batches(name, rows, f"{name}, held out")
            found = measure_held_out(tokenizer, control, batches, self.truth, other, self.settings.source_sigma)
            wrong = "next band" if other is None else other.name
            return found | {"wrong_metadata": wrong, "is_known_unseen": record is not None}

        depends_on = self._depends_on(name, rows, tokenizer, control)
        depends_on |= {"other": None if other is None else other.model_dump(mode="json"), "record": record is not None}
        return self.parts.get(f"held-out-{name}", depends_on, measure)

    def _another_camera(self) -> dict[str, dict[str, Any]]:
        """By camera, the scores of its tokens as each of the others would see the same objects."""
        images = [m.name for m in self.modalities if m.kind == "image"]
        ids = {name: self.dataset.sky_index(name).object_id[self._rows(name)].tolist() for name in images}
        found = {}
        for name in images:
            shared = {other: set(ids[name]) & set(ids[other]) for other in images if other != name}
            common = [i for i in ids[name] if shared and all(i in known for known in shared.values())]
            if not common:
                continue
            tokenizer = self.tokenizers["image"]

            def batches(name: str = name, common: list[str] = common, others: Any = tuple(shared)) -> Iterator[Any]:
                task = self.progress.add_task(f"{name}, as others", total=len(common))
                for first in range(0, len(common), self.settings.batch_size):
                    part = common[first : first + self.settings.batch_size]
                    yield self.dataset.read(name, part), {other: self.dataset.read(other, part) for other in others}
                    self.progress.advance(task, len(part))

            def measure(tokenizer: Tokenizer = tokenizer, batches: Any = batches) -> dict[str, Any]:
                return measure_another_camera(tokenizer, batches(), self.truth, self.settings.source_sigma)

            depends_on = [self._depends_on(other, self._rows(other), tokenizer) for other in images]
            found[name] = self.parts.get(f"another-camera-{name}", depends_on, measure)
        return found

    def _mistaken_for(self, modality: Modality, wanted: str | None) -> Spectrograph | None:
        """Whose numbers are told instead of a spectrograph's own; None for what is no spectrograph."""
        if not isinstance(modality.card, Spectrograph):
            return None
        of_dataset = {m.name: m.card for m in self.dataset.modalities if isinstance(m.card, Spectrograph)}
        of_all = {m.name: m.card for m in MODALITIES if isinstance(m.card, Spectrograph)} | of_dataset
        if wanted is not None:
            if wanted not in of_all:
                raise ValueError(f"mistaken_for: expected one of the spectrographs {sorted(of_all)}, found {wanted!r}")
            return of_all[wanted]
        return most_different(modality.card, of_dataset.values()) or most_different(modality.card, of_all.values())

    def _unseen_instruments(self) -> list[str]:
        """Modalities that the tokenizers are known not to have been trained on."""
        records = {m.kind: read_training_record(self.settings.tokenizers, m.kind) for m in self.modalities}
        return [
            m.name
            for m in self.modalities
            if (record := records[m.kind]) is not None and m.name not in record.modalities
        ]

    def _seen_objects(self) -> dict[str, int | None]:
        """By kind, how many of the measured objects the tokenizer was trained on; None where that is not known."""
        found: dict[str, int | None] = {}
        for kind in dict.fromkeys(m.kind for m in self.modalities):
            names = [m.name for m in self.modalities if m.kind == kind]
            ids = {i for name in names for i in self.dataset.sky_index(name).object_id[self._rows(name)].tolist()}
            record = read_training_record(self.settings.tokenizers, kind)
            found[kind] = None if record is None else len(record.seen_objects(ids))
        return found

    def _real(self) -> list[dict[str, Any]]:
        """The scores and pictures of the real files."""
        found = []
        for number, (title, observation) in enumerate(real_observations()):
            tokenizer = self.tokenizers.get(observation.modality.kind)
            if tokenizer is None:
                continue
            depends_on = [title, tokenizer_hash(tokenizer), self.settings.source_sigma, self.settings.batch_size]

            def measure(tokenizer: Tokenizer = tokenizer, observation: Any = observation) -> dict[str, Any]:
                return measure_real(tokenizer, observation, self.settings.source_sigma, self.settings.batch_size)

            summary = self.parts.get(f"real-{number}", depends_on, measure)
            found.append({"title": title, "picture": f"real-{number}"} | summary)
            if "refused" not in summary:
                quantiles = QUANTILES[observation.modality.kind]
                rows = choose_examples(np.array(summary["object_chi2"], np.float64), quantiles)
                notes = [f"chi2 {summary['object_chi2'][row]:.2f}" for row in rows]
                self.pictures[f"real-{number}"] = self._examples(observation.select(rows), None, notes)
        return found


def machine(device: str) -> str:
    """What the throughput was measured on."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' * (threads > 1)} of {os.cpu_count()} CPU cores ({platform.machine()})"


def _point(label: str, name: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """A point of the curve of quality against tokens; redshift R2 of the better probe, with all labels."""
    redshift = summary["redshift"]

    def best(features: str) -> float | None:
        if redshift is None or features not in redshift["r2"]:
            return None
        return max(scores[-1] for scores in redshift["r2"][features].values())

    return {
        "label": label,
        "modality": name,
        "tokens": summary["tokens"],
        "bits": summary["bits"],
        "rms_error": summary["chi2"]["source"]["rms_error"],
        "chi2_source": summary["chi2"]["source"]["mean"],
        "redshift_original": best("original"),
        "redshift_reconstruction": best("reconstruction"),
        "redshift_tokens": best("tokens"),
    }


def _charts(results: Mapping[str, Any]) -> dict[str, bytes]:
    pixels = results["pixels"]
    found = {}
    if pixels:
        found["flux-bias"] = charts.flux_bias_chart(pixels)
        found["signal-to-noise"] = charts.signal_to_noise_chart(pixels)
        found["codebooks"] = charts.codebook_chart(pixels)
    if len({point["label"] for point in results["economy"]}) > 1:
        found["economy"] = charts.economy_chart(results["economy"])
    if results["held_out_instruments"]:
        found["held-out-instruments"] = charts.held_out_chart(results["held_out_instruments"])
    return found


def _renewed(docs: Path, page: str) -> str:
    before = docs.read_text(encoding="utf-8") if docs.is_file() else None
    return insert_between_markers(before, page, str(docs))


def _write_pictures(folder: Path, pictures: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pictures.items():
        with replacing(folder / f"{name}.png") as stream:
            stream.write(content)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write(text.encode())
