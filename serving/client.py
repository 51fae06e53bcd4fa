"""The Python client: the served model by the method names of the local one.

    with Client("http://127.0.0.1:8000") as client:
        embeddings = client.embed([images, spectra])
        neighbours = client.neighbours(images.select([0]), k=5, target_modality="spectrum/desi")
        redshift = client.predict("scalar/redshift", images.select([0]))

Arrays travel as base64 of their bytes; batches are split by the server's /v1/limits.
"""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import torch
from torch import Tensor

from ..data.observations import CoefficientsObservation, ImageObservation, Observation, ScalarObservation
from ..models.embeddings import Embeddings

ENVELOPE_BYTES = 1024
"""Room for the fields around `input` in a request."""


class ApiError(Exception):
    """The server answered with a problem document: `status`, `problem` (RFC 9457), and its `detail` as message."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(f"{status} {problem.get('title', '')}: {problem.get('detail', '')}")
        self.status = status
        self.problem = problem


@dataclass(frozen=True)
class Neighbour:
    """One neighbour; `similarity` is the cosine, positions are degrees, ICRS. `weight` and `label` with predictions."""

    object_id: str
    modality: str
    similarity: float
    ra: float | None
    dec: float | None
    labels: dict[str, float] | None = None
    label: float | None = None
    weight: float | None = None


@dataclass(frozen=True)
class Interval:
    """Bounds that hold the truth with probability `level`; None where too few objects are known to tell."""

    level: float
    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class Distribution:
    """A probability for each bin [V]; `low` and `high` bound the bins, in the property's unit."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    probability: tuple[float, ...]


@dataclass(frozen=True)
class Prediction:
    """A predicted value; `calibrated` tells whether the intervals were calibrated on held-out objects.

    With method `neighbours` it shows these; with method `model`, the distribution whose median the value is; with
    `probe`, where the value is a class, `classes` has the probabilities. `is_outside` says that the object is unlike
    those known, by `novelty`, the share of them that lie as far out; None where that cannot be told.
    """

    property: str
    value: Any
    unit: str | None
    intervals: tuple[Interval, ...]
    calibrated: bool
    neighbours: tuple[Neighbour, ...]
    provenance: dict[str, Any]
    method: str = "neighbours"
    distribution: Distribution | None = None
    classes: dict[str, Any] | None = None
    novelty: float | None = None
    is_outside: bool | None = None


QueryLike = str | np.ndarray | Tensor | Observation | Sequence[Observation]
"""An object's id, a vector [D], or the observations of one object."""


class Client:
    """A connection to one server; close it, or use it in a `with` block. Errors of the server raise ApiError."""

    def __init__(self, url: str, timeout: float = 60.0, api_key: str | None = None) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        # The server may be this machine: proxies of the environment are not asked.
        self._http = httpx.Client(base_url=url.rstrip("/"), timeout=timeout, headers=headers, trust_env=False)
        self._limits: dict[str, int] | None = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def embed(self, observations: Sequence[Observation], space: str = "aligned") -> Embeddings:
        """One vector for each object, in order of first appearance, as the local model's `embed`.

        Raises ApiError if any object is not usable; its document names each.
        """
        items = _items(observations)
        vectors: list[np.ndarray] = []
        modalities: list[tuple[str, ...]] = []
        model_id = ""
        for batch in self._batches([json.dumps(item) for item in items.values()]):
            fields = json.dumps({"encoding_format": "base64", "space": space})
            body = f'{fields[:-1]}, "input": [{", ".join(batch)}]}}'
            answer = self._post("/v1/embeddings", body)
            failed = [datum["error"] for datum in answer["data"] if datum.get("error") is not None]
            if failed:
                raise ApiError(
                    failed[0]["status"], {**failed[0], "errors": [e for f in failed for e in f.get("errors", [])]}
                )
            for datum in answer["data"]:
                vectors.append(np.frombuffer(base64.b64decode(datum["embedding"]), "<f4"))
                modalities.append(tuple(datum["modalities"]))
            model_id = answer["provenance"]["model_id"]
        return Embeddings(
            object_id=tuple(items),
            vectors=torch.from_numpy(np.stack(vectors).astype(np.float32)),
            space=space,
            model_id=model_id,
            modalities=tuple(modalities),
        )

    def neighbours(
        self,
        query: QueryLike,
        k: int = 10,
        *,
        modality: str | None = None,
        target_modality: str | None = None,
        cone: tuple[float, float, float] | None = None,
        exclude: Sequence[str] = (),
        exclude_self: bool = True,
        with_labels: bool = False,
        collection: str = "objects",
    ) -> tuple[Neighbour, ...]:
        """The k nearest neighbours, best first. `cone` is (ra, dec, radius) in degrees, ICRS.

        `modality` says which vector of an object in the index is meant, `target_modality` which kind of neighbour is
        wanted.
        """
        body = _query(query, modality, target_modality, cone) | {
            "k": k,
            "exclude": list(exclude),
            "exclude_self": exclude_self,
            "include": ["labels"] if with_labels else [],
        }
        answer = self._post(f"/v1/collections/{quote(collection, safe='')}/search", json.dumps(body))
        return tuple(Neighbour(**neighbour) for neighbour in answer["neighbours"])

    def predict(
        self,
        property: str,
        query: QueryLike,
        *,
        method: str = "neighbours",
        k: int | None = None,
        modality: str | None = None,
        target_modality: str | None = None,
        cone: tuple[float, float, float] | None = None,
        exclude_self: bool = True,
    ) -> Prediction:
        """The value of a property (`scalar/redshift`) from the labels of the nearest neighbours.

        With method `model`, by the masked model: the query is the observations of one object, and the other options
        do not apply. With method `probe`, by the probe of this label that the server was started with.
        """
        body = _query(query, modality, target_modality, cone) | {
            "property": property,
            "method": method,
            "k": k,
            "exclude_self": exclude_self,
        }
        answer = self._post("/v1/predict", json.dumps(body))
        return Prediction(
            property=answer["property"],
            value=answer["value"],
            unit=answer["unit"],
            intervals=tuple(Interval(**interval) for interval in answer["intervals"]),
            calibrated=answer["calibrated"],
            neighbours=tuple(Neighbour(**neighbour) for neighbour in answer["neighbours"]),
            provenance=answer["provenance"],
            method=answer["method"],
            distribution=_distribution(answer["distribution"]),
            classes=answer["classes"],
            novelty=answer["novelty"],
            is_outside=answer["is_outside"],
        )

    def object(self, object_id: str) -> dict[str, Any]:
        """What the index knows of an object: position, modalities, labels, links."""
        return self._get(f"/v1/objects/{quote(object_id, safe='')}")

    def modalities(self) -> list[dict[str, Any]]:
        """What can be sent: kind, unit, bands or wavelengths of each modality."""
        return self._get("/v1/modalities")["modalities"]

    def models(self) -> list[dict[str, Any]]:
        """The served model: id, spaces, modalities."""
        return self._get("/v1/models")["data"]

    def collections(self) -> list[dict[str, Any]]:
        """What can be searched."""
        return self._get("/v1/collections")["collections"]

    def limits(self) -> dict[str, int]:
        """What one request may ask for."""
        if self._limits is None:
            self._limits = self._get("/v1/limits")
        return self._limits

    def _batches(self, items: Sequence[str]) -> Iterator[list[str]]:
        limits = self.limits()
        batch: list[str] = []
        size = ENVELOPE_BYTES
        for item in items:
            length = len(item) + 2
            if batch and (len(batch) == limits["max_items"] or size + length > limits["max_body_bytes"]):
                yield batch
                batch, size = [], ENVELOPE_BYTES
            batch.append(item)
            size += length
        if batch:
            yield batch

    def _get(self, path: str) -> dict[str, Any]:
        return _content(self._http.get(path))

    def _post(self, path: str, body: str) -> dict[str, Any]:
        return _content(self._http.post(path, content=body.encode(), headers={"Content-Type": "application/json"}))


def _content(response: httpx.Response) -> dict[str, Any]:
    if response.is_success:
        return response.json()
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        raise ApiError(response.status_code, response.json())
    raise ApiError(response.status_code, {"title": response.reason_phrase, "detail": response.text[:500]})


def _distribution(given: dict[str, list[float]] | None) -> Distribution | None:
    return None if given is None else Distribution(**{name: tuple(values) for name, values in given.items()})


def _query(
    query: QueryLike,
    modality: str | None,
    target_modality: str | None,
    cone: tuple[float, float, float] | None,
) -> dict[str, Any]:
    body: dict[str, Any] = {"modality": modality, "target_modality": target_modality}
    if cone is not None:
        body["cone"] = dict(zip(("ra", "dec", "radius_deg"), cone, strict=True))
    if isinstance(query, str):
        return body | {"object_id": query}
    if isinstance(query, Tensor):
        query = query.detach().cpu().numpy()
    if isinstance(query, np.ndarray):
        return body | {"vector": base64.b64encode(query.astype("<f4").reshape(-1).tobytes()).decode()}
    observations = [query] if isinstance(query, Observation) else query
    items = _items(observations)
    if len(items) != 1:
        raise ValueError(f"a query is one object; these observations hold {len(items)}: select one")
    (item,) = items.values()
    return body | {"observations": item["observations"]}


def _items(observations: Sequence[Observation]) -> dict[str, dict[str, Any]]:
    """The body of each object, by id, in order of first appearance."""
    items: dict[str, dict[str, Any]] = {}
    for observation in observations:
        for row, object_id in enumerate(observation.object_id):
            item = items.setdefault(object_id, {"object_id": object_id, "observations": []})
            item["observations"].append(_typed_object(observation, row))
    if not items:
        raise ValueError("expected at least one observation, found none")
    return items


def _typed_object(observation: Observation, row: int) -> dict[str, Any]:
    """One row of an observation. Masked pixels have inverse variance zero, so that no mask need be sent."""
    typed: dict[str, Any] = {"modality": observation.modality.name, "object_id": observation.object_id[row]}
    for name in ("ra", "dec"):
        value = float(getattr(observation, name)[row])
        if np.isfinite(value):
            typed[name] = value
    if isinstance(observation, ScalarObservation):
        typed |= {"data": float(observation.values[row]), "mask": bool(observation.mask[row])}
        error = float(observation.error[row])
        return typed if np.isnan(error) else typed | {"error": error}
    if isinstance(observation, CoefficientsObservation):
        return typed | {
            **_encoded(observation.values[row]),
            "mask": _encoded(observation.mask[row]),
            "error": _encoded(observation.error[row]),
        }
    typed |= _encoded(observation.flux[row])
    if isinstance(observation, ImageObservation):
        typed["bands"] = list(observation.bands)
        names: tuple[str, ...] = ("inverse_variance", "psf_fwhm", "depth", "center")
    else:
        names = ("inverse_variance", "wavelength", "resolving_power")
    return typed | {name: _encoded(getattr(observation, name)[row]) for name in names}


def _encoded(values: Tensor) -> dict[str, Any]:
    array = values.detach().cpu().numpy()
    name = "float64" if array.dtype == np.float64 else "float32"
    raw = np.ascontiguousarray(array, np.dtype(name).newbyteorder("<")).tobytes()
    return {"data": base64.b64encode(raw).decode(), "shape": list(array.shape), "dtype": name}
