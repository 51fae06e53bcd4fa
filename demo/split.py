"""Which objects of the demo train, choose and test: by a hash of their id, so that the answer never changes."""

from collections.abc import Iterable
from pathlib import Path

from ..data.token_shards import object_key
from .real_observations import is_shown

TENTHS = ("test", "validation")
"""The parts that the first tenths of the hash go to; the rest trains."""


def part_of(object_id: str) -> str:
    """`train`, `validation` or `test`; the real objects that the report shows are always `test`."""
    tenth = object_key(object_id) % 10
    if is_shown(object_id) or tenth >= len(TENTHS):
        return "test" if is_shown(object_id) else "train"
    return TENTHS[tenth]


def write_parts(folder: Path, object_ids: Iterable[str]) -> dict[str, list[str]]:
    """Write the ids of each part to `<folder>/<part>.txt`, and those not trained on to `held-out.txt`."""
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for object_id in sorted(set(object_ids)):
        parts[part_of(object_id)].append(object_id)
    folder.mkdir(parents=True, exist_ok=True)
    for name, ids in {**parts, "held-out": parts["validation"] + parts["test"]}.items():
        (folder / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")
    return parts
