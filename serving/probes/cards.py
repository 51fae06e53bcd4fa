"""The probes of a server, those it was started with and those that callers have left: found by id, told by a card."""

import hashlib
from typing import Any

from ..problems import ProblemError
from ..service import Service
from ..state_stores import stores_of
from .store import StoredProbe

CARD_EXAMPLE: dict[str, Any] = {
    "id": "3be19c6f5a2d7704",
    "label": "scalar/redshift",
    "task": "regression",
    "kind": "linear",
    "unit": "dimensionless",
    "created": "2026-11-28T23:40:00.000000+00:00",
    "note": "visual inspection, two of us",
    "num_labels": 400,
    "classes": None,
    "scores": {"r2": 0.91, "mean_absolute_error": 0.02},
    "coverage": [{"level": 0.9, "share": 0.91, "num_objects": 80, "width": 0.1}],
    "fitted_on": "objects",
    "model_id": "armillary-1f3a9c0d2b4e",
    "index_id": "objects-5d1c0a9e7b21",
    "space": "aligned",
    "modalities": ["image/hsc"],
    "is_usable": True,
    "links": {
        "self": "/v1/probes/3be19c6f5a2d7704",
        "file": "/v1/probes/3be19c6f5a2d7704/file",
        "predict": "/v1/probes/3be19c6f5a2d7704/predict",
    },
}


def card(service: Service, stored: StoredProbe) -> dict[str, Any]:
    """The body of `ProbeCard`."""
    probe, record, address = stored.probe, stored.record, f"/v1/probes/{stored.probe_id}"
    classes = [str(name) for name in probe.classes_.tolist()] if probe.task == "classification" else None
    return {
        "id": stored.probe_id,
        "label": probe.label,
        "task": probe.task,
        "kind": probe.kind,
        "unit": probe.unit_,
        "created": None if record is None else record.created,
        "note": "" if record is None else record.note,
        "num_labels": probe.num_train_,
        "classes": classes,
        "scores": probe.scores_,
        "coverage": [] if record is None else [measured.model_dump() for measured in record.coverage],
        "fitted_on": "start" if record is None else record.fitted_on,
        "model_id": probe.model_id_,
        "index_id": None if record is None else record.index_id,
        "space": probe.space_,
        "modalities": [name for name in probe.modalities_ if name],
        "is_usable": probe.model_id_ == service.model.model_id,
        "links": {"self": address, "file": f"{address}/file", "predict": f"{address}/predict"},
    }


def all_probes(service: Service) -> list[StoredProbe]:
    """Those the server was started with, then those that callers have left, the oldest first."""
    # What the server was started with has an id too, made of its label, so that it can be addressed.
    started = [
        StoredProbe(hashlib.sha256(label.encode()).hexdigest()[:16], probe) for label, probe in service.probes.items()
    ]
    return started + ([] if service.state is None else stores_of(service).probes.all())


def find_probe(service: Service, probe_id: str) -> StoredProbe:
    """The probe of an id. Raises ProblemError (404)."""
    for stored in all_probes(service):
        if stored.probe_id == probe_id:
            return stored
    raise unknown_probe(service, probe_id)


def unknown_probe(service: Service, probe_id: str) -> ProblemError:
    """The 404 of an id that no probe has."""
    labels = sorted({str(stored.probe.label) for stored in all_probes(service)})
    return ProblemError("not-found", f"no probe {probe_id!r}; see /v1/probes, which has probes of {labels}")
