"""What made a model: versions of the packages and of our code, for the record in its checkpoint."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..settings import PACKAGE_FOLDER

_PACKAGES = ("armillary", "torch", "lightning", "transformers", "numpy", "safetensors")


def describe_versions() -> dict[str, Any]:
    """Versions of Python and the packages that shape a model, and the git commit of a checkout (or None)."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {"versions": versions, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=PACKAGE_FOLDER, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return answer.stdout.strip() or None
