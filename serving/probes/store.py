"""Probes that callers have left on the server: one folder each under `state/probes`, by an id that the server made.

A folder is a saved probe (`models/probe_files.py`) and `served.json`, which says when and of what it was made, and by
which idempotency key. It is written under another name and renamed, so that it is there whole or not at all; several
processes may serve one folder. A folder that cannot be read is logged and passed over.
"""

import logging
import os
import re
import secrets
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ...data.parquet_files import sync_folder
from ...models.probe_files import ProbeError
from ...models.probe_loading import AnyProbe, load_probe
from ...settings import Settings
from ..schemas.probes import CoverageBody

LOG = logging.getLogger("armillary.probes")
RECORD = "served.json"
_ID = re.compile(r"[0-9a-f]{16}")
_STALE_SECONDS = 3600
"""After which a folder that was never finished is what a killed process has left."""


class ProbeRecord(Settings):
    """What the server knows of a probe beside its file."""

    created: str
    """Time, ISO 8601, UTC."""
    fitted_on: str
    note: str = ""
    index_id: str | None = None
    coverage: tuple[CoverageBody, ...] = ()
    idempotency_key: str | None = None
    """Hash of the key, and of the request that came with it."""
    fingerprint: str | None = None


@dataclass(frozen=True, eq=False)
class StoredProbe:
    """A probe, its id, and its record; those that the server was started with have no record."""

    probe_id: str
    probe: AnyProbe
    record: ProbeRecord | None = None


def new_id() -> str:
    """An id that nobody can guess, and that is safe in a path."""
    return secrets.token_hex(8)


def is_id(text: str) -> bool:
    """Whether `new_id` could have made it: nothing else ever becomes part of a path."""
    return _ID.fullmatch(text) is not None


class ProbeStore:
    """The probes under a folder; safe to use from many threads, and read anew when the folder has changed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = threading.Lock()
        self._loaded: dict[str, StoredProbe] = {}
        self._broken: set[str] = set()
        self._remove_leftovers()
        self.all()

    def all(self) -> list[StoredProbe]:
        """Every probe, the oldest first."""
        with self._lock:
            self._refresh()
            return sorted(self._loaded.values(), key=_age)

    def get(self, probe_id: str) -> StoredProbe | None:
        """The probe of this id, None if there is none."""
        with self._lock:
            if is_id(probe_id):
                self._refresh()
            return self._loaded.get(probe_id)

    def newest(self, label: str) -> list[StoredProbe]:
        """The probes of a label, the newest first."""
        return [stored for stored in reversed(self.all()) if stored.probe.label == label]

    def add(self, probe: AnyProbe, record: ProbeRecord, probe_id: str | None = None) -> StoredProbe:
        """Keep a probe; on return it is on disk. One whose id is there already is left as it is."""
        probe_id = probe_id or new_id()
        staged = self.folder / f".{probe_id}.{secrets.token_hex(4)}"
        try:
            probe.save(staged)
            (staged / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
            for path in staged.iterdir():
                _sync_file(path)
            sync_folder(staged)
            with self._lock:
                if not (self.folder / probe_id).exists():
                    staged.rename(self.folder / probe_id)
                    sync_folder(self.folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        found = self.get(probe_id)
        if found is None:
            raise ProbeError(f"the probe {probe_id} was removed while it was saved")
        return found

    def remove(self, probe_id: str) -> bool:
        """Forget a probe; whoever predicts with it at the moment goes on. False if there is none."""
        if not is_id(probe_id):
            return False
        # First out of the way, at once, then away: a half of a folder is never a probe.
        dying = self.folder / f".{probe_id}.{secrets.token_hex(4)}"
        try:
            (self.folder / probe_id).rename(dying)
        except FileNotFoundError:
            return False
        sync_folder(self.folder)
        shutil.rmtree(dying, ignore_errors=True)
        with self._lock:
            self._refresh()
        return True

    def _refresh(self) -> None:
        with os.scandir(self.folder) as entries:
            names = {entry.name for entry in entries if is_id(entry.name)}
        for name in self._loaded.keys() - names:
            del self._loaded[name]
        for name in sorted(names - self._loaded.keys() - self._broken):
            place = self.folder / name
            try:
                record = ProbeRecord.model_validate_json((place / RECORD).read_text(encoding="utf-8"))
                self._loaded[name] = StoredProbe(name, load_probe(place), record)
            except (ProbeError, ValidationError, OSError) as error:
                if place.exists():
                    LOG.error("the probe in %s is not served: %s", place, error)
                    self._broken.add(name)

    def _remove_leftovers(self) -> None:
        for path in self.folder.glob(".*"):
            if path.is_dir() and time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _age(stored: StoredProbe) -> tuple[str, str]:
    return ("" if stored.record is None else stored.record.created, stored.probe_id)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
