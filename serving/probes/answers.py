"""What a served probe answers, of one object or of several, and which probes a server takes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi.responses import JSONResponse

from ...data.observations import Observation
from ...models.conformal import ProbePrediction
from ...models.probe_files import ProbeError
from ...models.probe_loading import AnyProbe
from ...models.token_embeddings import TOKEN_SPACE, layers_of, modalities_of
from ..formats import bodies
from ..problems import ProblemError, at, not_found, pointer
from ..schemas.common import PredictRequest
from ..service import EmbeddedItem, Service
from ..state_stores import stores_of

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
    return JSONResponse(probe_answer(service, probe_of_label(service, asked.property), asked))


def probe_of_label(service: Service, label: str) -> AnyProbe:
    """The probe that tells this label: one the server was started with, else the newest that a caller has left.

    Raises ProblemError: 404 if there is none, 409 if all are of another model.
    """
    if label in service.probes:
        return service.probes[label]
    stored = [] if service.state is None else stores_of(service).probes.newest(label)
    usable = [found.probe for found in stored if found.probe.model_id_ == service.model.model_id]
    if usable:
        return usable[0]
    if stored:
        check_usable(service, stored[0].probe)
    left = [] if service.state is None else [found.probe.label for found in stores_of(service).probes.all()]
    raise not_found("label of a probe", label, {*service.probes, *left})


def check_usable(service: Service, probe: AnyProbe) -> None:
    """Raises ProblemError (409) if the probe was fitted on another model than the one served."""
    if probe.model_id_ != service.model.model_id:
        raise ProblemError(
            "conflict",
            f"this probe was fitted on model {probe.model_id_!r}, but the model served is {service.model.model_id!r}",
        )


def probe_answer(service: Service, probe: AnyProbe, asked: PredictRequest) -> dict[str, Any]:
    """The body of `PredictAnswer` for one object. Raises ProblemError."""
    given, modalities = _given(service, asked, probe)
    found = probe.predict_full(given)
    return {
        "method": "probe",
        "property": asked.property,
        "unit": probe.unit_,
        "k": None,
        "neighbours": [],
        "distribution": None,
        "provenance": _provenance(service, probe),
    } | _prediction(found, 0, probe, modalities)


def probe_answers(service: Service, probe: AnyProbe, items: Sequence[Any]) -> dict[str, Any]:
    """The body of `ProbePredictions` for entries of `input`; an entry that is not usable fails alone."""
    space = probe.space_ or ""
    if space.startswith(TOKEN_SPACE):
        data = [_of_tokens(service, probe, number, item, space) for number, item in enumerate(items)]
    else:
        data = _of_vectors(service, probe, items, space)
    return {
        "object": "list",
        "property": probe.label,
        "unit": probe.unit_,
        "data": data,
        "provenance": _provenance(service, probe),
    }


def _of_vectors(service: Service, probe: AnyProbe, items: Sequence[Any], space: str) -> list[dict[str, Any]]:
    service.check_space(space)
    results = service.embed_items([{} if _is_vector(item) else item for item in items], space)
    for number, item in enumerate(items):
        if _is_vector(item):
            try:
                results[number] = EmbeddedItem(_posted_vector(item, probe, ("input", number)), None, ())
            except ProblemError as problem:
                results[number] = problem
    rows = {number: item for number, item in enumerate(results) if isinstance(item, EmbeddedItem)}
    found = probe.predict_full(np.stack([item.vector for item in rows.values()])) if rows else None
    row_of = {number: row for row, number in enumerate(rows)}
    data: list[dict[str, Any]] = []
    for number, result in enumerate(results):
        if isinstance(result, ProblemError):
            data.append({"index": number, "error": result.document()})
        elif found is not None:
            try:
                told = _prediction(found, row_of[number], probe, result.modalities)
                data.append({"index": number, "object_id": result.object_id, **told, "error": None})
            except ProblemError as problem:
                data.append({"index": number, "error": problem.document()})
    return data


def _of_tokens(service: Service, probe: AnyProbe, number: int, item: Any, space: str) -> dict[str, Any]:
    place = ("input", number)
    try:
        if not isinstance(item, dict) or not {"observations", "data"} & item.keys():
            detail = "this probe reads the tokens of observations; found none"
            raise ProblemError("invalid-request", f"{pointer(*place)}: {detail}", [at(pointer(*place), detail)])
        observations = bodies.observations_of(item, place, service.known_modalities(), service.limits)
        tokens, modalities = _tokens_of(service, observations, space)
        told = _prediction(probe.predict_full(tokens), 0, probe, modalities)
    except ProblemError as problem:
        return {"index": number, "error": problem.document()}
    object_id = observations[0].object_id[0]
    return {
        "index": number,
        "object_id": None if object_id == bodies.UNNAMED else object_id,
        **told,
        "error": None,
    }


def _is_vector(item: Any) -> bool:
    return isinstance(item, dict) and item.keys() == {"vector"}


def _posted_vector(given: Mapping[str, Any], probe: AnyProbe, place: bodies.Place) -> np.ndarray:
    """A vector of the probe's space from `given["vector"]`. Raises ProblemError (422)."""
    here, wanted = (*place, "vector"), int(probe.n_features_in_)
    try:
        vector = bodies.vector_of(given["vector"], here)
    except (TypeError, ValueError):
        raise _invalid(here, "expected numbers, or base64 of float32") from None
    if vector.shape != (wanted,):
        raise _invalid(here, f"expected {wanted} numbers, found {list(vector.shape)}")
    if not np.isfinite(vector).all():
        raise _invalid(here, "expected finite numbers, found NaN or infinity")
    return vector


def _invalid(place: bodies.Place, detail: str) -> ProblemError:
    return ProblemError("invalid-request", f"{pointer(*place)}: {detail}", [at(pointer(*place), detail)])


def _provenance(service: Service, probe: AnyProbe) -> dict[str, Any]:
    return {"model_id": service.model.model_id, "index_id": None, "space": probe.space_, "metric": None}


def _prediction(found: ProbePrediction, row: int, probe: AnyProbe, modalities: Sequence[str]) -> dict[str, Any]:
    """What a probe says of one object."""
    told = found.value if found.probabilities is None else found.probabilities
    if not np.isfinite(told[row]).all():
        raise ProblemError("conflict", "the probe gives no finite value for this object")
    value = _plain(found.value[row])
    return {
        # As in JSON, the names of classes are strings.
        "value": value if found.probabilities is None else str(value),
        "calibrated": "+".join(modalities) in probe.modalities_,
        "novelty": None if found.novelty is None else float(found.novelty[row]),
        "is_outside": None if found.is_outside is None else bool(found.is_outside[row]),
    } | _errors(found, row, probe)


def _given(service: Service, asked: PredictRequest, probe: AnyProbe) -> tuple[Any, tuple[str, ...]]:
    """What the probe predicts from, of one object, and the modalities that it came from."""
    space = probe.space_ or ""
    if space.startswith(TOKEN_SPACE):
        return _tokens(service, asked, space)
    if asked.vector is not None and asked.object_id is None and asked.observations is None and asked.modality is None:
        return _posted_vector({"vector": asked.vector}, probe, ())[None], ()
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
    return _tokens_of(service, observations, space)


def _tokens_of(service: Service, observations: list[Observation], space: str) -> tuple[Any, tuple[str, ...]]:
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


def _errors(found: ProbePrediction, row: int, probe: AnyProbe) -> dict[str, Any]:
    if found.probabilities is not None and found.sets is not None:
        names = [str(_plain(name)) for name in probe.classes_]
        sets = [
            {
                "level": level,
                "classes": [name for name, here in zip(names, found.sets[row, :, place], strict=True) if here],
            }
            for place, level in enumerate(found.levels)
        ]
        return {
            "intervals": [],
            "classes": {
                "probabilities": dict(zip(names, found.probabilities[row].tolist(), strict=True)),
                "sets": sets,
            },
        }
    assert found.lower is not None
    assert found.upper is not None
    return {
        "classes": None,
        "intervals": [
            {"level": level, "lower": _finite(low), "upper": _finite(high)}
            for level, low, high in zip(found.levels, found.lower[row], found.upper[row], strict=True)
        ],
    }


def _finite(bound: float) -> float | None:
    return float(bound) if math.isfinite(bound) else None


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
