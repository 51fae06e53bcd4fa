"""Probes over HTTP: fit one to labels, keep it on the server, share it as a file, predict with it."""

import hashlib
import time
from functools import partial
from typing import Annotated, Any

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse

from ...data.parquet_files import replacing
from ...models.probe_bytes import probe_bytes
from ...models.probe_files import ProbeError
from ...models.probe_loading import AnyProbe, probe_from_bytes
from ...models.token_embeddings import TOKEN_SPACE
from ..formats import bodies
from ..formats.binary_answers import wanted_type
from ..formats.safetensors_body import SAFETENSORS
from ..formats.uploads import room_for_a_job, storage
from ..idempotency import PARAMETER, REPLAYED, check_same, fingerprint, key_of
from ..jobs.answers import accepted
from ..jobs.jobs import INPUT, JobRecord
from ..probes.answers import check_usable, probe_answer, probe_answers
from ..probes.cards import CARD_EXAMPLE, all_probes, card, find_probe, unknown_probe
from ..probes.fitting import fit_probe, is_bulk, now, num_labels
from ..probes.store import ProbeRecord, StoredProbe, new_id
from ..problems import ProblemError, at
from ..query_items import read_items
from ..schemas.common import PredictAnswer, PredictRequest
from ..schemas.jobs import JOB_EXAMPLE, JobAnswer
from ..schemas.probes import ProbeCard, ProbeList, ProbePredictions, ProbePredictRequest, ProbeRequest
from ..service import Service
from ..state_stores import StateStores, stores_of
from .documentation import errors, json_body

MAX_PROBES = 1000
"""Probes that callers may leave."""
_FITS = {
    "labels of objects of the index": {
        "label": "scalar/redshift",
        "modality": "image/hsc",
        "examples": [
            {"object_id": "39633345008634465", "value": 0.21},
            {"object_id": "39633345008634466", "value": 0.34},
        ],
        "note": "visual inspection, two of us",
    },
    "classes by vectors": {
        "label": "morphology",
        "space": "encoder",
        "vectors": {"data": "AACAPwAAAEAAAEBAAACAQA==", "shape": [2, 2], "dtype": "float32"},
        "values": ["spiral", "elliptical"],
    },
}
_ASKED = {
    "an object of the index": {"object_id": "39633345008634465"},
    "several": {"input": [{"object_id": "39633345008634465"}, {"vector": [0.6, -0.8]}]},
    "an image": {"observations": [{"modality": "image/hsc", "bands": ["g"], "data": [[[1.0, 2.0], [3.0, 4.0]]]}]},
}
_PREDICTIONS = {
    "object": "list",
    "property": "scalar/redshift",
    "unit": "dimensionless",
    "data": [
        {
            "index": 0,
            "object_id": "39633345008634465",
            "value": 0.21,
            "intervals": [{"level": 0.68, "lower": 0.19, "upper": 0.23}],
            "classes": None,
            "calibrated": True,
            "novelty": 0.46,
            "is_outside": False,
            "error": None,
        }
    ],
    "provenance": {"model_id": "armillary-1f3a9c0d2b4e", "index_id": None, "space": "aligned", "metric": None},
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_UPLOAD = {**_BINARY, "x-example": {"file": "probe.safetensors", "query": ""}}
ProbeId = Annotated[str, Path(examples=["3be19c6f5a2d7704"])]


def probe_routes(service: Service) -> APIRouter:
    """`/v1/probes` and what lies below."""
    router = APIRouter(tags=["probes"])

    @router.post(
        "/v1/probes",
        status_code=201,
        summary="Fit a probe to labels, or leave one that was fitted elsewhere",
        responses={
            201: _card("The probe, fitted and kept; `Location` is its address"),
            202: {
                "model": JobAnswer,
                "description": "So many labels are a job",
                "content": {"application/json": {"example": JOB_EXAMPLE}},
            },
            **errors(400, 404, 409, 413, 415, 422, 429, 503, 507),
        },
        openapi_extra={**json_body(ProbeRequest, _FITS, {SAFETENSORS: _UPLOAD}), "parameters": [PARAMETER]},
    )
    async def create_probe(request: Request) -> Response:
        """A small head on frozen vectors: of objects of the index by id, of observations, or of vectors that

        /v1/embeddings gave. Values that are numbers make a regression with conformal intervals, names a classification
        with calibrated probabilities. The card says how well objects were told that the fit had not seen.

        A fit of many labels, or with `Prefer: respond-async`, is a job: 202, and the job's `probe_id` when it is done.
        A probe's file as the body (safetensors, as /v1/probes/{id}/file gives it) is kept as it is, if it belongs to
        the model served. With `Idempotency-Key`, a request that is sent again makes no second probe.
        """
        stores = await service.in_worker(partial(stores_of, service))
        key = key_of(request)
        media_type, body = await bodies.read_body(request, service.limits, (bodies.JSON, SAFETENSORS))
        same = fingerprint(request, hashlib.sha256(body).hexdigest())
        is_async = "respond-async" in request.headers.get("prefer", "")

        def replayed() -> Response | None:
            return None if key is None else _replayed(service, stores, key, same)

        def fit_now(asked: ProbeRequest) -> Response:
            probe, record = fit_probe(service, asked, key, same)
            return _kept(service, stores, probe, record)

        with stores.keys.held(key):
            found = await service.in_worker(replayed)
            if found is not None:
                return found
            if media_type == SAFETENSORS:
                return await service.in_worker(lambda: _uploaded(service, stores, body, key, same))
            asked = await service.in_worker(lambda: bodies.parse_json(ProbeRequest, body))
            if is_async or is_bulk(service, asked):
                return await service.in_worker(lambda: _as_job(service, stores, asked, body, key, same))
            return await anyio.to_thread.run_sync(lambda: fit_now(asked), limiter=stores.fitting)

    @router.get(
        "/v1/probes",
        summary="The probes on this server",
        responses={
            200: {"model": ProbeList, "content": {"application/json": {"example": {"probes": [CARD_EXAMPLE]}}}},
            **errors(503),
        },
    )
    def list_probes() -> JSONResponse:
        """Those the server was started with, and those that callers have left, the oldest first."""
        return JSONResponse({"probes": [card(service, stored) for stored in all_probes(service)]})

    @router.get(
        "/v1/probes/{probe_id}",
        summary="The card of a probe, or its file",
        responses={200: _card("The card, or by `Accept` the file", {SAFETENSORS: _BINARY}), **errors(404, 406, 503)},
    )
    def probe_by_id(probe_id: ProbeId, request: Request) -> Response:
        """By `Accept`: JSON, or `application/vnd.safetensors`, which is what /v1/probes/{id}/file gives."""
        wanted = wanted_type(request.headers.get("accept"), (bodies.JSON, SAFETENSORS))
        stored = find_probe(service, probe_id)
        return _file(stored) if wanted == SAFETENSORS else JSONResponse(card(service, stored))

    @router.get(
        "/v1/probes/{probe_id}/file",
        summary="A probe as one file, to be shared",
        response_class=Response,
        responses={200: {"description": "The file", "content": {SAFETENSORS: _BINARY}}, **errors(404, 503)},
    )
    def probe_file(probe_id: ProbeId) -> Response:
        """Safetensors, with description and card in its metadata: `armillary.load_probe(path)` reads it, and POST

        /v1/probes takes it, on any server of the same model.
        """
        return _file(find_probe(service, probe_id))

    @router.delete(
        "/v1/probes/{probe_id}",
        status_code=204,
        response_class=Response,
        summary="Forget a probe",
        responses=errors(404, 409, 503),
    )
    def delete_probe(probe_id: ProbeId) -> Response:
        """Its file is removed; predictions that are being made end well. A probe that the server was started with

        stays (409).
        """
        stored = find_probe(service, probe_id)
        if stored.record is None:
            raise ProblemError(
                "conflict", "the server was started with this probe, which its operator alone can change"
            )
        if not stores_of(service).probes.remove(probe_id):
            raise unknown_probe(service, probe_id)
        return Response(status_code=204)

    @router.post(
        "/v1/probes/{probe_id}/predict",
        summary="What a probe says of an object, or of several",
        responses={
            200: {
                "model": PredictAnswer | ProbePredictions,
                "content": {"application/json": {"example": _PREDICTIONS}},
            },
            **errors(404, 409, 413, 415, 422, 429, 503),
        },
        openapi_extra=json_body(ProbePredictRequest, _ASKED),
    )
    async def predict(probe_id: ProbeId, request: Request) -> JSONResponse:
        """Of one object, by `vector`, `object_id` or `observations`, the answer is that of /v1/predict. Of several,

        by `input` or a list of ids, it is a list in their order, where an entry that is not usable fails alone.
        """
        _, body = await bodies.read_body(request, service.limits)

        def work() -> JSONResponse:
            asked = bodies.parse_json(ProbePredictRequest, body)
            probe = find_probe(service, probe_id).probe
            check_usable(service, probe)
            return JSONResponse(_predicted(service, probe, asked))

        return await service.in_worker(work)

    return router


def _file(stored: StoredProbe) -> Response:
    name = f'attachment; filename="probe-{stored.probe_id}.safetensors"'
    return Response(probe_bytes(stored.probe), media_type=SAFETENSORS, headers={"Content-Disposition": name})


def _replayed(service: Service, stores: StateStores, key: str, same: str) -> Response | None:
    """The answer to a request that came before with this key, None if none did. Raises ProblemError (409)."""
    for stored in stores.probes.all():
        if stored.record is not None and stored.record.idempotency_key == key:
            check_same(stored.record.fingerprint, same)
            return _created(service, stored, REPLAYED)
    job = stores.jobs.by_key(key, ("fit",))
    if job is None:
        return None
    check_same(job.fingerprint, same)
    return accepted(stores, job, REPLAYED)


def _created(service: Service, stored: StoredProbe, headers: dict[str, str]) -> JSONResponse:
    location = {"Location": f"/v1/probes/{stored.probe_id}"}
    return JSONResponse(card(service, stored), 201, headers=location | headers)


def _kept(service: Service, stores: StateStores, probe: AnyProbe, record: ProbeRecord) -> JSONResponse:
    _check_room(stores)
    with storage():
        return _created(service, stores.probes.add(probe, record), {})


def _check_room(stores: StateStores) -> None:
    if len(stores.probes.all()) >= MAX_PROBES:
        raise ProblemError("storage-full", f"{MAX_PROBES} probes are kept, the most that may be; delete one first")


def _uploaded(service: Service, stores: StateStores, body: bytes, key: str | None, same: str) -> JSONResponse:
    """Keep a probe that came as a file, if it is one of the model served, and works."""
    try:
        probe = probe_from_bytes(body, place="the body")
    except ProbeError as error:
        raise ProblemError("malformed-body", str(error)) from None
    check_usable(service, probe)
    if not isinstance(probe.label, str) or not 0 < len(probe.label) <= 200:
        raise ProblemError("malformed-body", f"the probe must have a label of 1 to 200 letters, found {probe.label!r}")
    space = probe.space_ or ""
    # What a stranger's file says need not fit together: it is tried before it is kept.
    is_of_tokens = space.startswith(TOKEN_SPACE) and probe.kind == "attentive"
    width = int(probe.n_features_in_)
    if not space.startswith(TOKEN_SPACE) and width != service.check_space(space):
        raise ProblemError("conflict", f"vectors of {space!r} have {service.check_space(space)} numbers, not {width}")
    try:
        found = probe.predict_full(np.zeros((2, 3, width) if is_of_tokens else (2, width), np.float32))
        card(service, StoredProbe("", probe))
        if probe.task == "regression" and not np.isfinite(found.value).all():
            raise ValueError("its values are not finite")
        if found.value.shape != (2,):
            raise ValueError(f"it tells {found.value.shape[1:]} labels at once; a probe here tells one")
    except Exception as error:
        raise ProblemError("malformed-body", f"the probe does not work ({type(error).__name__}: {error})") from None
    record = ProbeRecord(created=now(), fitted_on="upload", idempotency_key=key, fingerprint=same)
    return _kept(service, stores, probe, record)


def _as_job(
    service: Service, stores: StateStores, asked: ProbeRequest, body: bytes, key: str | None, same: str
) -> JSONResponse:
    room_for_a_job(stores)
    _check_room(stores)
    if asked.examples is not None and any(example.object_id is not None for example in asked.examples):
        service.only_collection()
    with stores.jobs.upload() as staged, storage():
        with replacing(staged / INPUT) as file:
            file.write(body)
        job = JobRecord(
            job_id=new_id(),
            kind="fit",
            phase="QUEUED",
            created=time.time(),
            total=num_labels(asked),
            media_type=bodies.JSON,
            parameters={"probe_id": new_id()},
            model_id=service.model.model_id,
            chunk_objects=stores.jobs.settings.chunk_objects,
            idempotency_key=key,
            fingerprint=same,
        )
        job = stores.jobs.create(staged, job)
    stores.new_job()
    return accepted(stores, job, {})


def _predicted(service: Service, probe: AnyProbe, asked: ProbePredictRequest) -> dict[str, Any]:
    ways = [name for name in ("input", "vector", "object_id", "observations") if getattr(asked, name) is not None]
    if len(ways) != 1:
        detail = f"expected exactly one of input, vector, object_id and observations; found {ways or 'none'}"
        raise ProblemError("invalid-request", detail, [at("", detail)])
    if asked.modality is not None and asked.object_id is None:
        detail = "goes with object_id alone, and says which of its vectors is meant"
        raise ProblemError("invalid-request", f"/modality: {detail}", [at("/modality", detail)])
    items = asked.input
    if isinstance(asked.object_id, list):
        items = [{"object_id": name, "modality": asked.modality} for name in asked.object_id]
    if items is None:
        given = asked.model_dump(include={"vector", "object_id", "modality", "observations"})
        return probe_answer(service, probe, PredictRequest(property=str(probe.label), method="probe", **given))
    if not items:
        detail = "expected at least one object, found none"
        raise ProblemError("invalid-request", f"/{ways[0]}: {detail}", [at(f"/{ways[0]}", detail)])
    return probe_answers(service, probe, read_items(service, items, with_vectors=True))


def _card(description: str, others: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {"application/json": {"example": CARD_EXAMPLE}, **(others or {})}
    return {"model": ProbeCard, "description": description, "content": content}
