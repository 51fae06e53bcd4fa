"""The real observations that ship with Armillary, for tests and the demo; `data/real/README.md` gives their sources."""

import difflib
from pathlib import Path

REAL_FOLDER = Path(__file__).resolve().parent / "real"


def real_file(name: str) -> Path:
    """Path of the shipped file `name`. Raises LookupError that names the nearest known one."""
    path = REAL_FOLDER / name
    known = real_file_names()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise LookupError(f"no shipped file {name!r}; the nearest known is {nearest or 'none'}, all: {known}")
    return path


def real_file_names() -> list[str]:
    """Names of all shipped files."""
    return sorted(path.name for path in REAL_FOLDER.glob("*.fits*"))
