"""From the body of `POST /v1/probes` to a fitted probe: vectors and labels are gathered, checked, and fitted.

The coverage on the card is measured: a fit on four fifths of the labels says how often its intervals hold the others.
"""

import datetime
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...models.attentive_probe import AttentiveProbe
from ...models.conformal import LEVELS
from ...models.embeddings import TOKEN_SPACE, Embeddings
from ...models.kernel_probe import KernelProbe
from ...models.probe_loading import AnyProbe
from ...models.probes import LinearProbe
from ...models.token_embeddings import TokenEmbeddings
from ..formats import bodies
from ..index.protocol import SearchIndex
from ..problems import ProblemError, at, pointer
from ..schemas.probes import CoverageBody, ProbeRequest, Value
from ..service import EmbeddedItem, Service
from .store import ProbeRecord

FEWEST_TO_MEASURE = 50
"""Labels below which a fifth of them says nothing of coverage."""
AT_ONCE = {"linear": 5000, "kernel": 1000, "attentive": 100}
"""Labels up to which a fit of each kind is a matter of seconds; beyond that it is a job."""
MOST_LABELS = 200_000
_SHOWN_ERRORS = 20


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Vectors of B objects with their labels [B], numbers or the names of classes."""

    vectors: Embeddings | TokenEmbeddings
    labels: np.ndarray
    task: str
    fitted_on: str
    index_id: str | None = None

    def __len__(self) -> int:
        return len(self.labels)


def num_labels(asked: ProbeRequest) -> int:
    """Labels in a request."""
    return len(asked.examples if asked.examples is not None else asked.values or [])


def is_bulk(service: Service, asked: ProbeRequest) -> bool:
    """Whether the fit takes longer than a caller waits."""
    with_observations = sum(1 for example in asked.examples or () if example.observations is not None)
    return num_labels(asked) > AT_ONCE[asked.kind] or with_observations > service.limits.max_items


def fit_probe(service: Service, asked: ProbeRequest, key: str | None, fingerprint: str) -> tuple[AnyProbe, ProbeRecord]:
    """The probe that is asked for, fitted, and its record. Raises ProblemError."""
    training = training_set(service, asked)
    try:
        probe = _new(asked, training.task).fit(training.vectors, training.labels)
    except ValueError as error:
        raise _invalid(("values",) if asked.examples is None else ("examples",), str(error)) from None
    coverage = () if asked.kind == "attentive" else _coverage(asked, training)
    record = ProbeRecord(
        created=now(),
        fitted_on=training.fitted_on,
        note=asked.note,
        index_id=training.index_id,
        coverage=coverage,
        idempotency_key=key,
        fingerprint=fingerprint,
    )
    return probe, record


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def training_set(service: Service, asked: ProbeRequest) -> TrainingSet:
    """Vectors and labels of a request, checked. Raises ProblemError that points to what is wrong."""
    given = [name for name in ("examples", "vectors") if getattr(asked, name) is not None]
    if len(given) != 1 or (asked.values is not None) != (given == ["vectors"]):
        named = [name for name in ("examples", "vectors", "values") if getattr(asked, name) is not None]
        detail = f"expected examples, or vectors and values; found {named or 'none'}"
        raise ProblemError("invalid-request", detail, [at("", detail)])
    if num_labels(asked) > MOST_LABELS:
        raise ProblemError("too-large", f"at most {MOST_LABELS} labels in a probe, found {num_labels(asked)}")
    if asked.examples is None:
        return _from_vectors(service, asked)
    labels, task = _labels([example.value for example in asked.examples], asked.task, ("examples", "value"))
    if asked.kind == "attentive":
        detail = "an attentive probe reads token vectors: send vectors [objects, tokens, width] and values"
        raise _invalid(("kind",), detail)
    with_observations = [example.observations is not None for example in asked.examples]
    for number, example in enumerate(asked.examples):
        if (example.object_id is None) == (example.observations is None):
            raise _invalid(("examples", number), "expected an object_id or observations, one of them")
    if all(with_observations):
        vectors = _embedded(service, asked)
        return TrainingSet(vectors, labels, task, "observations")
    if any(with_observations):
        raise _invalid(("examples",), "expected all by object_id, or all by observations; found both")
    index = service.only_collection()
    return TrainingSet(_stored(service, asked, index), labels, task, "objects", index.manifest.index_id)


def _from_vectors(service: Service, asked: ProbeRequest) -> TrainingSet:
    labels, task = _labels(asked.values or [], asked.task, ("values",))
    array = bodies.array_of(asked.vectors, ("vectors",))
    axes, wanted = (3, "[objects, tokens, width]") if asked.kind == "attentive" else (2, "[objects, dimension]")
    if array.ndim != axes or 0 in array.shape:
        raise _invalid(("vectors",), f"expected shape {wanted}, found {list(array.shape)}")
    if len(array) != len(labels):
        raise _invalid(("values",), f"expected one for each of {len(array)} vectors, found {len(labels)}")
    array = array.astype(np.float32)
    finite = np.isfinite(array).reshape(len(array), -1).all(1)
    if not finite.all():
        raise _invalid(("vectors", int((~finite).argmax())), "expected finite numbers, found NaN or infinity")
    ids = tuple(map(str, range(len(array))))
    names = tuple(asked.modality.split("+")) if asked.modality else ()
    model_id, modalities = service.model.model_id, (names,) * len(ids)
    if asked.kind == "attentive":
        if asked.space is not None:
            raise _invalid(("space",), "token vectors are of the encoder's tokens; leave it out")
        mask = torch.ones(array.shape[:2], dtype=torch.bool)
        tokens = TokenEmbeddings(ids, torch.from_numpy(array), mask, model_id, modalities, TOKEN_SPACE)
        return TrainingSet(tokens, labels, task, "vectors")
    space = _space(service, asked)
    size = service.check_space(space, "space")
    if array.shape[1] != size:
        raise _invalid(("vectors",), f"vectors of the space {space!r} have {size} numbers, found {array.shape[1]}")
    return TrainingSet(Embeddings(ids, torch.from_numpy(array), space, model_id, modalities), labels, task, "vectors")


def _stored(service: Service, asked: ProbeRequest, index: SearchIndex) -> Embeddings:
    ids = [str(example.object_id) for example in asked.examples or ()]
    space = index.manifest.space
    if asked.space not in (None, space):
        detail = f"the index holds vectors of the space {space!r}, not {asked.space!r}"
        raise ProblemError("conflict", f"/space: {detail}", [at("/space", detail)])
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        places = [number for number, name in enumerate(ids) if name == repeated[0]]
        detail = f"an object has one label; {repeated[0]!r} came {len(places)} times"
        raise _invalid(("examples", places[1], "object_id"), detail)
    rows: list[np.ndarray] = []
    errors = []
    for number, name in enumerate(ids):
        try:
            rows.append(index.vector(name, asked.modality))
        except LookupError as error:
            errors.append(at(pointer("examples", number, "object_id"), str(error)))
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ProblemError("not-found", f"{errors[0]['pointer']}: {errors[0]['detail']}{more}", errors[:_SHOWN_ERRORS])
    names = tuple(index.modalities_of(i) if asked.modality is None else (asked.modality,) for i in ids)
    return Embeddings(tuple(ids), torch.from_numpy(np.stack(rows)), space, service.model.model_id, names)


def _embedded(service: Service, asked: ProbeRequest) -> Embeddings:
    """Vectors of examples that came with their observations."""
    if asked.modality is not None:
        raise _invalid(("modality",), "goes with object_id or vectors; observations name their own")
    space = _space(service, asked)
    service.check_space(space, "space")
    known, found = service.known_modalities(), []
    examples = asked.examples or []
    step = service.limits.max_items
    for start in range(0, len(examples), step):
        objects = {
            number: bodies.observations_of(
                {"observations": examples[number].observations}, ("examples", number), known, service.limits
            )
            for number in range(start, min(start + step, len(examples)))
        }
        results = service.embed_objects(objects, space)
        found += [results[number] for number in objects]
    problems = {number: result for number, result in enumerate(found) if isinstance(result, ProblemError)}
    if problems:
        number, first = next(iter(problems.items()))
        errors = [at(pointer("examples", number), problem.detail) for number, problem in problems.items()]
        raise ProblemError(first.kind, f"{pointer('examples', number)}: {first.detail}", errors[:_SHOWN_ERRORS])
    items = [result for result in found if isinstance(result, EmbeddedItem)]
    vectors = torch.from_numpy(np.stack([item.vector for item in items]).astype(np.float32))
    ids = tuple(map(str, range(len(items))))
    return Embeddings(ids, vectors, space, service.model.model_id, tuple(item.modalities for item in items))


def _space(service: Service, asked: ProbeRequest) -> str:
    if asked.space is not None:
        return asked.space
    index, _ = service.in_use
    if index is not None:
        return str(index.manifest.space)
    return "aligned" if "aligned" in service.spaces() else "encoder"


def _labels(values: Sequence[Value], task: str | None, place: tuple[str, ...]) -> tuple[np.ndarray, str]:
    """Labels as an array, and the task: by its name, or by what the values are."""
    names = [number for number, value in enumerate(values) if isinstance(value, str)]
    task = task or ("classification" if names else "regression")

    def here(number: int) -> tuple[str | int, ...]:
        return (place[0], number, *place[1:])

    if task == "classification":
        if names and len(names) < len(values):
            other = next(number for number, value in enumerate(values) if not isinstance(value, str))
            raise _invalid(here(other), f"classes are all names or all numbers; found {values[other]!r} among names")
        return np.array(values), task
    if names:
        raise _invalid(here(names[0]), f"regression needs numbers, found {values[names[0]]!r}")
    try:
        labels = np.array([float(value) for value in values])
    except OverflowError:
        labels = np.array([math.nan])
    wrong = np.flatnonzero(~np.isfinite(labels))
    if len(wrong):
        raise _invalid(here(int(wrong[0])), "expected a finite number, found NaN, infinity or one beyond float64")
    return labels, task


def _new(asked: ProbeRequest, task: str) -> Any:
    types: dict[str, Any] = {"linear": LinearProbe, "kernel": KernelProbe, "attentive": AttentiveProbe}
    return types[asked.kind](task=task, label=asked.label, unit=asked.unit)


def _coverage(asked: ProbeRequest, training: TrainingSet) -> tuple[CoverageBody, ...]:
    """How often intervals or sets of a fit on four fifths of the objects hold the labels of the others."""
    if len(training) < FEWEST_TO_MEASURE:
        return ()
    order = np.random.default_rng(0).permutation(len(training)).tolist()
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    try:
        probe = _new(asked, training.task).fit(training.vectors.rows(kept), training.labels[kept])
    except ValueError:
        # A rare class may have no member among those kept.
        return ()
    truth = training.labels[held]
    found = probe.predict_full(training.vectors.rows(held))
    measured = []
    for place, level in enumerate(LEVELS):
        if training.task == "classification":
            is_member = truth[:, None] == probe.classes_[None]
            share = float((found.sets[:, :, place] & is_member).any(1).mean())
            width = float(found.sets[:, :, place].sum(1).mean())
        else:
            lower, upper = found.lower[:, place], found.upper[:, place]
            share, width = float(((lower <= truth) & (truth <= upper)).mean()), float(np.median(upper - lower))
        finite = width if math.isfinite(width) else None
        measured.append(CoverageBody(level=level, share=share, num_objects=len(held), width=finite))
    return tuple(measured)


def _invalid(place: tuple[str | int, ...], detail: str) -> ProblemError:
    return ProblemError("invalid-request", f"{pointer(*place)}: {detail}", [at(pointer(*place), detail)])
