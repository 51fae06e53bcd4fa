"""What the API says of a job."""

from typing import Any

from fastapi.responses import JSONResponse

from ..state_stores import StateStores
from .jobs import JobRecord


def job_body(stores: StateStores, job: JobRecord) -> dict[str, Any]:
    """The body of `JobAnswer`."""
    address = f"/v1/jobs/{job.job_id}"
    links, probe_id = {"self": address}, (job.result or {}).get("probe_id")
    if job.phase == "COMPLETED":
        links["result"] = f"{address}/result" if probe_id is None else f"/v1/probes/{probe_id}"
    return {
        "id": job.job_id,
        "kind": job.kind,
        "phase": job.phase,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "expires": None if job.finished is None else job.finished + stores.jobs.settings.keep_seconds,
        "progress": {"done": job.done, "total": job.total},
        "model_id": job.model_id,
        "error": job.error,
        "probe_id": probe_id,
        "links": links,
    }


def accepted(stores: StateStores, job: JobRecord, headers: dict[str, str]) -> JSONResponse:
    """202, and where to ask for the job."""
    return JSONResponse(job_body(stores, job), 202, headers={"Location": f"/v1/jobs/{job.job_id}", **headers})
