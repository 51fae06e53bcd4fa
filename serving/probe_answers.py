"""What a served probe answers to `POST /v1/predict`, and which probes a server takes."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fastapi.responses import JSONResponse

from ..models.conformal import ProbePrediction
from ..models.probe_files import ProbeError
from ..models.probe_loading import AnyProbe
from ..models.token_embeddings import TOKEN_SPACE, layers_of, modalities_of
from . import bodies
from .problems import ProblemError, at, not_found, pointer
from .schemas import PredictRequest
from .service import Service

_NOT_OF_PROBES = ("target_modality", "cone", "exclude", "exact", "k")


def probes_by_label(probes: Iterable[AnyProbe]) -> dict[str, AnyProbe]:
    """Probes by what they tell. Raises ProbeError where one has no label or no model, or two have the same label."""
    found: dict[str, AnyProbe] = {}
    for probe in probes:
        if probe.label is None or probe.model_id_ is None:
            raise ProbeError(
                "a probe to serve must have a label and be fitted on a model's embeddings; found label "
                f"{probe.label!r} and model {probe.model_id_!r}"
            )
        if probe.label in found:
            raise ProbeError(f"two probes have the label {probe.label!r}; a server takes one for each")
        found[probe.label] = probe
    return found


def from_probe(service: Service, asked: PredictRequest) -> JSONResponse:
    """The answer of the probe whose label is asked for. Raises ProblemError."""
    default = PredictRequest(property=asked.property)
    for name in _NOT_OF_PROBES:
        if getattr(asked, name) != getattr(default, name):
            detail = "goes with method 'neighbours' alone; a probe asks no neighbours"
            raise ProblemError("invalid-request", f"/{name}: {detail}", [at(pointer(name), detail)])
    if asked.property not in service.probes:
        raise not_found("label of a probe", asked.property, service.probes)
    probe = service.probes[asked.property]
    given, modalities = _given(service, asked, probe)
    found = probe.predict_full(given)
    body = {
        "method": "probe",
        "property": asked.property,
        "value": _plain(found.value[0]),
        "unit": probe.unit_,
        "calibrated": "+".join(modalities) in probe.modalities_,
        "k": None,
        "neighbours": [],
        "distribution": None,
        "novelty": None if found.novelty is None else float(found.novelty[0]),
        "is_outside": None if found.is_outside is None else bool(found.is_outside[0]),
        "provenance": {"model_id": service.model.model_id, "index_id": None, "space": probe.space_, "metric": None},
    }
    return JSONResponse(body | _errors(found, probe))


def _given(service: Service, asked: PredictRequest, probe: AnyProbe) -> tuple[Any, tuple[str, ...]]:
    """What the probe predicts from, of one object, and the modalities that it came from."""
    space = probe.space_ or ""
    if space.startswith(TOKEN_SPACE):
        return _tokens(service, asked, space)
    if asked.observations is None:
        index = service.only_collection()
        if index.manifest.space != space:
            detail = f"the index holds vectors of the space {index.manifest.space!r}; this probe is of {space!r}"
            raise ProblemError("conflict", f"{detail}: send observations", [at("", detail)])
        query = service.query(asked, index)
        vector, modalities = query.vector[0], query.modalities
    else:
        observations = bodies.observations_of(
            {"observations": asked.observations}, (), service.known_modalities(), service.limits
        )
        service.check_space(space)
        result = service.embed_objects({0: observations}, space)[0]
        if isinstance(result, ProblemError):
            raise ProblemError(result.kind, result.detail, [at("/observations", e["detail"]) for e in result.errors])
        vector, modalities = result.vector, result.modalities
    return vector[None], modalities


def _tokens(service: Service, asked: PredictRequest, space: str) -> tuple[Any, tuple[str, ...]]:
    if asked.observations is None:
        detail = "this probe reads the tokens of observations; found none"
        raise ProblemError("invalid-request", f"/observations: {detail}", [at("/observations", detail)])
    observations = bodies.observations_of(
        {"observations": asked.observations}, (), service.known_modalities(), service.limits
    )
    side_by_side = modalities_of(space)
    if side_by_side:
        place = {name: number for number, name in enumerate(side_by_side)}
        found = [o.modality.name for o in observations]
        if sorted(found) != sorted(side_by_side):
            detail = f"expected one observation of each of {list(side_by_side)}, found {found}"
            raise ProblemError("invalid-observation", f"/observations: {detail}", [at("/observations", detail)])
        observations = sorted(observations, key=lambda o: place[o.modality.name])
    tokens = service.embed_tokens([replace(o, object_id=("0",)) for o in observations], layers_of(space))
    return tokens.side_by_side() if side_by_side else tokens, tokens.modalities[0]


def _errors(found: ProbePrediction, probe: AnyProbe) -> dict[str, Any]:
    if found.probabilities is not None and found.sets is not None:
        names = [str(_plain(name)) for name in probe.classes_]
        sets = [
            {
                "level": level,
                "classes": [name for name, here in zip(names, found.sets[0, :, place], strict=True) if here],
            }
            for place, level in enumerate(found.levels)
        ]
        return {
            "intervals": [],
            "classes": {"probabilities": dict(zip(names, found.probabilities[0].tolist(), strict=True)), "sets": sets},
        }
    assert found.lower is not None
    assert found.upper is not None
    return {
        "classes": None,
        "intervals": [
            {"level": level, "lower": _finite(low), "upper": _finite(high)}
            for level, low, high in zip(found.levels, found.lower[0], found.upper[0], strict=True)
        ],
    }


def _finite(bound: float) -> float | None:
    return float(bound) if math.isfinite(bound) else None


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
