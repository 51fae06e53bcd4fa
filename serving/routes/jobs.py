"""Bulk work: `/v1/jobs`, for what exceeds a request. Upload, ask how far it is, download; or abort."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import anyio.to_thread
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse

from ..formats import bodies
from ..formats.arrow_body import ARROW
from ..formats.fits_body import FITS
from ..formats.safetensors_body import SAFETENSORS
from ..formats.uploads import receive, room_for_a_job, storage
from ..idempotency import PARAMETER, REPLAYED, check_same, fingerprint, key_of
from ..jobs.answers import accepted, job_body
from ..jobs.bulk_inputs import OPENERS, open_input
from ..jobs.jobs import INPUT, JobRecord, Phase
from ..jobs.kinds import NeighboursWork
from ..jobs.results import FORMATS, result_file, wanted_format
from ..jobs.worker import JobWorker
from ..probes.store import new_id
from ..problems import ProblemError
from ..schemas.jobs import JOB_EXAMPLE, JobAnswer, JobList, NeighboursRequest
from ..service import Service
from ..state_stores import StateStores, stores_of
from .documentation import Responses, errors, json_body

MAX_WAIT_SECONDS = 60
_WAIT_STEP_SECONDS = 0.1
_NEIGHBOURS = {
    "spectra like many images": {
        "object_ids": ["39633345008634465", "39633345008634466"],
        "modality": "image/hsc",
        "target_modality": "spectrum/desi",
        "k": 10,
    }
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_UPLOADS = {
    media_type: {**_BINARY, "x-example": {"file": f"objects.{suffix}", "query": query}}
    for media_type, suffix, query in (
        (SAFETENSORS, "safetensors", "kind=embed"),
        (ARROW, "arrows", "kind=embed"),
        (bodies.NPY, "npy", "kind=embed&modality=image/hsc&bands=g,r,i"),
        (FITS, "fits", "kind=embed&modality=image/hsc&bands=g,r,i"),
    )
}
JobId = Annotated[str, PathParameter(examples=["9f2c1d7a04be6631"])]


def job_routes(service: Service) -> APIRouter:
    """`/v1/jobs`, and the worker, which lives as long as the application."""
    worker: list[JobWorker] = []

    @asynccontextmanager
    async def working(app: FastAPI) -> AsyncIterator[None]:
        if service.state is not None:
            stores = await anyio.to_thread.run_sync(partial(stores_of, service))
            worker.append(JobWorker(service, stores.jobs))
            stores.new_job = worker[-1].wake
            worker[-1].start()
        yield
        if worker:
            await anyio.to_thread.run_sync(worker.pop().stop)

    router = APIRouter(tags=["jobs"], lifespan=working)

    @router.post(
        "/v1/jobs",
        status_code=202,
        summary="Leave work that takes longer than a request: a file to embed, the neighbours of many objects",
        responses=_accepted(),
        openapi_extra={
            **json_body(NeighboursRequest, _NEIGHBOURS, _UPLOADS),
            "parameters": [PARAMETER],
        },
    )
    async def create_job(
        request: Request,
        kind: Annotated[Literal["embed", "neighbours"], Query(examples=["neighbours"])],
        space: Annotated[Literal["aligned", "encoder"], Query(description="Of embed: of the vectors")] = "aligned",
        modality: Annotated[str | None, Query(description="Of a .npy or FITS upload: what it is")] = None,
        bands: Annotated[str | None, Query(description="Of images in a .npy or FITS upload: `g,r,i`")] = None,
        unit: Annotated[
            str | None, Query(description="Of a .npy or FITS upload: the modality's, as it must be")
        ] = None,
        zero_point: Annotated[float | None, Query(description="Of a FITS upload, as of /v1/embeddings")] = None,
    ) -> JSONResponse:
        """`kind=embed` takes a file of many objects, as /v1/embeddings takes it, of up to gigabytes; `kind=neighbours`

        takes JSON. The upload is read as it comes; what is wrong with it as a whole is said at once, a bad object is
        an `error` in the result's row. The answer, 202 with `Location`, means that the job is on disk: it survives a
        restart, and goes on behind its last chunk. With `Idempotency-Key`, a request that is sent again makes no
        second job.
        """
        stores = await service.in_worker(partial(stores_of, service))
        model_id, key = service.model.model_id, key_of(request)
        media_type = _media_type(request, kind)
        limit = stores.jobs.settings.max_input_bytes if kind == "embed" else service.limits.max_body_bytes
        parameters: dict[str, Any] = {"modality": modality, "bands": bands, "unit": unit, "zero_point": zero_point}
        parameters = {name: value for name, value in parameters.items() if value is not None}
        if kind == "embed":
            parameters["space"] = space
            service.check_space(space, "query", "space")
        with stores.keys.held(key), stores.jobs.upload() as staged:
            body_hash = await receive(request, staged / INPUT, limit)
            same = fingerprint(request, body_hash)
            job = JobRecord(
                job_id=new_id(),
                kind=kind,
                phase="QUEUED",
                created=time.time(),
                media_type=media_type,
                parameters=parameters,
                model_id=model_id,
                chunk_objects=stores.jobs.settings.chunk_objects,
                idempotency_key=key,
                fingerprint=same,
            )
            found, is_new = await service.in_worker(lambda: _take_in(service, stores, staged, job))
        if is_new:
            stores.new_job()
        return accepted(stores, found, {} if is_new else REPLAYED)

    @router.get("/v1/jobs", summary="The jobs on this server", responses=_listed())
    def list_jobs(
        phase: Annotated[Phase | None, Query(description="Only those in this phase")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> JSONResponse:
        """The newest first."""
        stores = stores_of(service)
        found = [job for job in reversed(stores.jobs.all()) if phase in (None, job.phase)]
        return JSONResponse({"jobs": [job_body(stores, job) for job in found[:limit]]})

    @router.get("/v1/jobs/{job_id}", summary="How far a job is", responses=_described())
    async def job_by_id(
        job_id: JobId,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait for its end")] = 0,
    ) -> JSONResponse:
        """Phases are those of IVOA's UWS: QUEUED, EXECUTING, then COMPLETED, ERROR or ABORTED. With `wait`, the answer

        comes when the job has finished, or the time is over.
        """
        until = time.monotonic() + wait
        while True:
            stores, job = await service.in_worker(lambda: _known(service, job_id))
            if job.is_finished or time.monotonic() >= until or service.is_draining:
                return JSONResponse(job_body(stores, job))
            await anyio.sleep(_WAIT_STEP_SECONDS)

    @router.get(
        "/v1/jobs/{job_id}/result",
        summary="Download what a job has made",
        response_class=FileResponse,
        responses={
            200: {"description": "The result", "content": dict.fromkeys(FORMATS.values(), _BINARY)},
            **errors(404, 406, 409, 422, 507),
        },
    )
    async def result(
        job_id: JobId,
        request: Request,
        format: Annotated[str | None, Query(description="`arrow`, `parquet` or `npy`; else by Accept")] = None,
    ) -> Response:
        """Arrow (a stream), Parquet, or the vectors alone as .npy, by `format` or `Accept`; parts of it by `Range`.

        The schema's metadata has the provenance. The vector of an object that was not usable is null (NaN in .npy),
        and `error` says why.
        """

        def work() -> tuple[Path, str]:
            stores, job = _known(service, job_id)
            media_type = wanted_format(format, request.headers.get("accept"))
            if job.phase != "COMPLETED":
                said = f": {job.error['detail']}" if job.error else ""
                raise ProblemError("not-finished", f"the job is in phase {job.phase}{said}")
            if job.kind == "fit":
                raise ProblemError("not-finished", f"a fit makes a probe: /v1/probes/{(job.result or {})['probe_id']}")
            with storage():
                return result_file(stores.jobs.place(job_id), media_type), media_type

        path, media_type = await service.in_worker(work)
        return FileResponse(path, media_type=media_type, filename=f"{job_id}{path.suffix}")

    @router.delete(
        "/v1/jobs/{job_id}",
        summary="Abort a job; forget a finished one",
        responses={**_described(), 204: {"description": "The job had finished, and is forgotten"}},
    )
    def delete_job(job_id: JobId) -> Response:
        """A job that waits or is being worked on is aborted (200): nothing of its result is kept. One that has

        finished, or was aborted before, is removed with its files (204).
        """
        stores, job = _known(service, job_id)
        if job.is_finished:
            stores.jobs.remove(job_id)
            return Response(status_code=204)
        stores.jobs.abort(job_id)
        stores.new_job()
        return JSONResponse(job_body(stores, _known(service, job_id)[1]))

    return router


def _media_type(request: Request, kind: str) -> str:
    allowed = tuple(OPENERS) if kind == "embed" else (bodies.JSON,)
    media_type = request.headers.get("content-type", bodies.JSON).partition(";")[0].strip().lower()
    if media_type not in allowed:
        raise ProblemError("unsupported-media-type", f"{kind} takes {' or '.join(allowed)}, found {media_type!r}")
    return media_type


def _take_in(service: Service, stores: StateStores, staged: Path, job: JobRecord) -> tuple[JobRecord, bool]:
    """The job of an upload, checked and on disk; or the one that came with the same key. Whether it is new."""
    found = stores.jobs.by_key(job.idempotency_key, ("embed", "neighbours"))
    if found is not None:
        check_same(found.fingerprint, job.fingerprint or "")
        return found, False
    room_for_a_job(stores)
    if job.kind == "embed":
        upload = open_input(
            staged / INPUT, job.media_type, _texts(job.parameters), service.known_modalities(), service.limits
        )
        total, chunk_objects = upload.count, upload.chunk_objects(job.chunk_objects, service.limits)
    else:
        total, chunk_objects = NeighboursWork(service, staged, job).total, job.chunk_objects
    if total > stores.jobs.settings.max_objects:
        raise ProblemError("too-large", f"at most {stores.jobs.settings.max_objects} objects in a job, found {total}")
    with storage():
        return stores.jobs.create(staged, job.model_copy(update={"total": total, "chunk_objects": chunk_objects})), True


def _texts(parameters: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in parameters.items() if name != "space"}


def _known(service: Service, job_id: str) -> tuple[StateStores, JobRecord]:
    stores = stores_of(service)
    job = stores.jobs.get(job_id)
    if job is None:
        raise ProblemError("not-found", f"no job {job_id!r}: it never was, or was removed after its time")
    return stores, job


def _accepted() -> Responses:
    content = {"application/json": {"example": JOB_EXAMPLE}}
    return {
        202: {"model": JobAnswer, "description": "The job is on disk", "content": content},
        **errors(400, 404, 409, 413, 415, 422, 429, 503, 507),
    }


def _listed() -> Responses:
    return {
        200: {"model": JobList, "content": {"application/json": {"example": {"jobs": [JOB_EXAMPLE]}}}},
        **errors(409, 422),
    }


def _described() -> Responses:
    return {
        200: {"model": JobAnswer, "content": {"application/json": {"example": JOB_EXAMPLE}}},
        **errors(404, 409, 422),
    }
