"""Results by the content that they were made from: a repeated image is not embedded twice.

Keys are SHA-256 of everything that a measurement says, so that no caller can make two measurements share one. The
least recently used entries leave when the rest needs their bytes.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import fields
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from ..data.observations import Observation

ENTRY_BYTES = 400
"""Of an entry beside its value: key, names and links."""

Value = TypeVar("Value")


def content_key(observations: Sequence[Observation], purpose: str) -> bytes:
    """The key of the measurements of one object for `purpose` (model and space): 32 bytes.

    The object's id and place on the sky do not count: neither is seen by a model.
    """
    digest = hashlib.sha256(purpose.encode())
    for observation in sorted(observations, key=lambda o: o.modality.name):
        for field in fields(observation):
            value = getattr(observation, field.name)
            if field.name in ("object_id", "ra", "dec"):
                continue
            if isinstance(value, Tensor):
                array = np.ascontiguousarray(value.numpy())
                digest.update(f"{field.name} {array.dtype} {array.shape} ".encode())
                digest.update(array.data.cast("B") if array.size else b"")
            else:
                name = value.name if field.name == "modality" else value
                digest.update(f"{field.name} {name!r} ".encode())
    return digest.digest()


class RecentlyUsed(Generic[Value]):
    """Values by key, in at most `max_bytes`; zero keeps nothing. Safe between threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Value | None:
        """The entry of this key, which is now the most recently used."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def keep(self, key: bytes, value: Value, num_bytes: int) -> None:
        """Keep a value of so many bytes, beside ENTRY_BYTES; it must not be changed afterwards."""
        size = num_bytes + ENTRY_BYTES
        if size > self.max_bytes:
            return
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = (value, size)
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._entries.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.num_bytes = 0


class ContentCache(RecentlyUsed[tuple[np.ndarray, tuple[str, ...]]]):
    """Vectors with the modalities they came from."""

    def put(self, key: bytes, vector: np.ndarray, modalities: tuple[str, ...]) -> None:
        """Keep a vector, as it is now."""
        # A row of a batch would keep the whole batch in memory.
        kept = vector.copy()
        kept.flags.writeable = False
        self.keep(key, (kept, modalities), kept.nbytes)
