"""What a served probe answers, of one object or of several, and which probes a server takes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...data.observations import Observation
from ...models.conformal import ProbePrediction
from ...models.probe_files import ProbeError
from ...models.probe_loading import AnyProbe
from ...models.token_embeddings import TOKEN_SPACE, layers_of, modalities_of
from ..formats import bodies
from ..problems import ProblemError, at, not_found
from ..query_items import Item, embed_items, no_observations, posted_vector
from ..schemas.common import PredictRequest, StoredItem
from ..service import EmbeddedItem, Service
from ..state_stores import stores_of


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
        "gallery": None,
        "neighbours": [],
        "distribution": None,
        "provenance": probe_provenance(service, probe, asks_index=asked.object_id is not None),
    } | _prediction(found, 0, probe, modalities)


def probe_answers(service: Service, probe: AnyProbe, items: Sequence[Item]) -> dict[str, Any]:
    """The body of `ProbePredictions` for entries of `input`; an entry that is not usable fails alone."""
    data: list[dict[str, Any]] = []
    for number, result in enumerate(probe_results(service, probe, items)):
        told = {"error": result.document()} if isinstance(result, ProblemError) else {**result, "error": None}
        data.append({"index": number, **told})
    return {
        "object": "list",
        "property": probe.label,
        "unit": probe.unit_,
        "data": data,
        "provenance": items_provenance(service, probe, items),
    }


def probe_results(service: Service, probe: AnyProbe, items: Sequence[Item]) -> list[dict[str, Any] | ProblemError]:
    """What a probe says of each item, with its `object_id`, or why it says nothing."""
    space = probe.space_ or ""
    if space.startswith(TOKEN_SPACE):
        return [_of_tokens(service, probe, number, item, space) for number, item in enumerate(items)]
    service.check_space(space)
    embedded = embed_items(service, items, space, int(probe.n_features_in_))
    rows = {number: item for number, item in enumerate(embedded) if isinstance(item, EmbeddedItem)}
    found = probe.predict_full(np.stack([item.vector for item in rows.values()])) if rows else None
    row_of = {number: row for row, number in enumerate(rows)}
    results: list[dict[str, Any] | ProblemError] = []
    for number, item in enumerate(embedded):
        if isinstance(item, ProblemError):
            results.append(item)
            continue
        assert found is not None
        try:
            told = _prediction(found, row_of[number], probe, item.modalities)
            results.append({"object_id": item.object_id, **told})
        except ProblemError as problem:
            results.append(problem)
    return results


def items_provenance(service: Service, probe: AnyProbe, items: Sequence[Item]) -> dict[str, Any]:
    """What `probe_results` were made with."""
    return probe_provenance(service, probe, asks_index=any(isinstance(item, StoredItem) for item in items))


def probe_provenance(service: Service, probe: AnyProbe, *, asks_index: bool) -> dict[str, Any]:
    """What the answer of a probe was made with; the index where a vector came from there."""
    index = service.in_use[0] if asks_index else None
    index_id = None if index is None else index.manifest.index_id
    return {"model_id": service.model.model_id, "index_id": index_id, "space": probe.space_, "metric": None}


def _of_tokens(service: Service, probe: AnyProbe, number: int, item: Item, space: str) -> dict[str, Any] | ProblemError:
    if isinstance(item, ProblemError):
        return item
    if not isinstance(item, list):
        return no_observations(number, "this probe reads the tokens of observations")
    try:
        tokens, modalities = _tokens_of(service, item, space)
        told = _prediction(probe.predict_full(tokens), 0, probe, modalities)
    except ProblemError as problem:
        return problem
    object_id = item[0].object_id[0]
    return {"object_id": None if object_id == bodies.UNNAMED else object_id, **told}


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
        return posted_vector(asked.vector, int(probe.n_features_in_), ("vector",))[None], ()
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
