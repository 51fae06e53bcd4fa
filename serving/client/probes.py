"""Probes over the client: what is fitted on the server, its card, and the requests for both."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np

from ...models.embeddings import Embeddings
from .batches import SAFETENSORS
from .requests import Call, delete, get, idempotency_key, json_of, place, post, query_body
from .results import Prediction, known_fields, prediction_of


@dataclass(frozen=True)
class ProbeRecord:
    """The card of a probe on the server. `scores` and `coverage` are of objects that the fit had not seen."""

    id: str
    label: str
    task: str
    kind: str
    unit: str | None
    num_labels: int | None
    scores: dict[str, float]
    coverage: tuple[dict[str, Any], ...]
    modalities: tuple[str, ...]
    space: str | None
    model_id: str | None
    is_usable: bool
    """False if it belongs to another model than the one served."""
    fitted_on: str
    classes: tuple[str, ...] | None = None
    created: str | None = None
    note: str = ""
    index_id: str | None = None


def probe_of(answer: Mapping[str, Any]) -> ProbeRecord:
    """From the server's answer."""
    fields = known_fields(ProbeRecord, dict(answer))
    classes = answer.get("classes")
    return ProbeRecord(
        **fields
        | {
            "coverage": tuple(answer["coverage"]),
            "modalities": tuple(answer["modalities"]),
            "classes": None if classes is None else tuple(classes),
        }
    )


def fit_call(
    label: str,
    objects: Mapping[str, Any] | Embeddings,
    values: Mapping[str, Any] | Sequence[Any] | np.ndarray | None,
    options: Mapping[str, Any],
) -> Call[dict[str, Any]]:
    """See `Client.fit_probe`; answers a probe's card, or a job. Raises ValueError if objects and values differ."""
    body: dict[str, Any] = {"label": label} | {name: given for name, given in options.items() if given is not None}
    if isinstance(objects, Embeddings):
        body |= _vectors(objects, values)
    elif values is None:
        body["examples"] = [{"object_id": str(name), "value": _plain(value)} for name, value in objects.items()]
    else:
        raise ValueError("values go with embeddings; labels of objects of the index are {object_id: value} alone")
    return post("/v1/probes", body, dict, creates=True)


def upload_call(content: bytes) -> Call[ProbeRecord]:
    """Leave a probe that was fitted elsewhere."""
    headers = {"Content-Type": SAFETENSORS, "Idempotency-Key": idempotency_key()}
    return Call("POST", "/v1/probes", lambda response: probe_of(json_of(response)), content, headers)


def probes_call() -> Call[tuple[ProbeRecord, ...]]:
    """All probes, the oldest first."""
    return get("/v1/probes", lambda answer: tuple(probe_of(card) for card in answer["probes"]))


def probe_call(probe_id: str) -> Call[ProbeRecord]:
    """One probe's card."""
    return get(place("v1", "probes", probe_id), probe_of)


def probe_file_call(probe_id: str) -> Call[bytes]:
    """The probe as a file."""

    def content(response: httpx.Response) -> bytes:
        return response.content

    return Call("GET", place("v1", "probes", probe_id, "file"), content)


def delete_probe_call(probe_id: str) -> Call[None]:
    """Forget a probe."""
    return delete(place("v1", "probes", probe_id))


def predict_by_probe_call(probe_id: str, property: str, query: Any, modality: str | None) -> Call[Prediction]:
    """What a probe says of one object. Its answer raises ValueError if the probe tells something else."""
    body = query_body(query, modality)
    del body["target_modality"]

    def read(answer: dict[str, Any]) -> Prediction:
        if answer["property"] != property:
            raise ValueError(f"probe {probe_id!r} tells {answer['property']!r}, not {property!r}")
        return prediction_of(answer)

    return post(place("v1", "probes", probe_id, "predict"), body, read)


def job_of_fit_call(job_id: str, seconds: float) -> Call[dict[str, Any]]:
    """How far a fit is that became a job; the answer comes at its end, or after so many seconds."""
    return get(f"{place('v1', 'jobs', job_id)}?{urlencode({'wait': seconds})}", dict)


def _vectors(found: Embeddings, values: Any) -> dict[str, Any]:
    if values is None:
        raise ValueError("embeddings need values: one for each object, or {object_id: value}")
    if isinstance(values, Mapping):
        missing = [name for name in found.object_id if name not in values]
        if missing:
            raise ValueError(f"no value for object {missing[0]!r} ({len(missing)} such)")
        values = [values[name] for name in found.object_id]
    given = [_plain(value) for value in values]
    if len(given) != len(found):
        raise ValueError(f"expected a value for each of {len(found)} objects, found {len(given)}")
    modalities = sorted({"+".join(names) for names in found.modalities})
    array = np.ascontiguousarray(found.numpy(), "<f4")
    encoded = {"data": base64.b64encode(array.tobytes()).decode(), "shape": list(array.shape), "dtype": "float32"}
    body: dict[str, Any] = {"vectors": encoded, "values": given, "space": found.space}
    return body | ({"modality": modalities[0]} if len(modalities) == 1 else {})


def _plain(value: Any) -> float | int | str:
    """A number or the name of a class, as JSON has it."""
    if isinstance(value, str | np.str_):
        return str(value)
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    return int(value) if isinstance(value, int | np.integer) else float(value)
