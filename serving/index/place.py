"""Where an index may be: a folder, or the address of a Milvus engine. Imports nothing, for the command line asks."""

import re
from pathlib import Path

LITE_SUFFIX = ".db"
"""Of a file of milvus-lite."""


def is_milvus(place: str | Path) -> bool:
    """Whether a place is the address of a Milvus engine (`http://HOST:19530#NAME`, `PATH.db#NAME`), not a folder."""
    uri = str(place).partition("#")[0]
    return re.match(r"(https?|tcp)://", uri) is not None or uri.endswith(LITE_SUFFIX)


def index_place(text: str) -> str | Path:
    """An address as it is, for a path would lose one of its slashes; else a path."""
    return text if is_milvus(text) else Path(text)
