"""Token stores copied to a disk of the node, so that a run reads its tokens from there and not over the network.

A copy appears whole or not at all, under a name that follows from the store's place and files: a store that changed has
another copy. Of the processes of a node one copies, and the others wait for it. The copy names the same objects in the
same order, so that a run may go on with it or without it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..settings import SettingsError
from .parquet_files import sync_folder
from .token_manifest import MANIFEST, describe_unfinished, manifest_entries, read_manifest
from .token_shards import TokenStoreError, shard_path

COPIERS = 8
"""Files copied at once: file systems over a network answer many at a time."""
SPARE_BYTES = 4096
"""Disk space that a file may take beyond its size."""


def stage_tokens(tokens: str | Mapping[str, float], root: str | None) -> str | Mapping[str, float]:
    """One token store, or several with their weights, as copies below `root`; as they are if that is None.

    `root` may hold environment variables, which are this process's. Raises SettingsError that names one that is unset,
    and TokenStoreError as `staged`.
    """
    if root is None:
        return tokens
    folder = expand(root)
    if isinstance(tokens, str):
        return str(staged(tokens, folder))
    return {str(staged(store, folder)): weight for store, weight in tokens.items()}


def expand(folder: str) -> Path:
    """A folder with the values of its environment variables, $NAME or ${NAME}. Raises SettingsError if one is unset."""

    def value_of(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise SettingsError(
                f"stage_tokens: {folder}: expected the environment variable {name} to hold a folder of this node; it "
                f"is unset on {socket.gethostname()}"
            )
        return os.environ[name]

    return Path(re.sub(r"\$(?:(\w+)|\{(\w+)\})", value_of, folder)).expanduser()


def staged(store: str | Path, root: str | Path) -> Path:
    """The copy of a finished token store in `<root>/<name>-<digest>`, made now unless it stands whole.

    Shows progress on stderr if this process copies. Raises TokenStoreError if the store is not finished, `root` cannot
    be written, or has too little space, which is known before anything is copied.
    """
    store, root = Path(store).resolve(), Path(root)
    files = _files(store)
    final = root / f"{store.name}-{_digest(store, files)}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{final.name}.lock"):
            if not _is_whole(final, files):
                _replace(store, files, final)
    except OSError as error:
        raise TokenStoreError(f"{root}: {store} cannot be copied there: {error}") from None
    return final


@dataclass(frozen=True)
class _File:
    num_bytes: int
    changed: int
    """Nanoseconds since 1970."""


def _files(store: Path) -> dict[str, _File]:
    """The files that the manifest speaks of, and itself, by their paths in the store."""
    manifest = read_manifest(store)
    if manifest is None:
        raise TokenStoreError(describe_unfinished(store))
    paths = [store / MANIFEST]
    for name, entry in manifest_entries(manifest):
        for index in range(len(entry["bytes"])):
            folder = shard_path(store, name, index)
            if not folder.is_dir():
                raise TokenStoreError(f"{folder}: expected a shard, for {MANIFEST} has it; found none")
            paths += sorted(Path(found) for found in os.scandir(folder))
    stats = ((path, path.stat()) for path in paths)
    return {str(path.relative_to(store)): _File(stat.st_size, stat.st_mtime_ns) for path, stat in stats}


def _digest(store: Path, files: Mapping[str, _File]) -> str:
    content = [str(store), *((name, file.num_bytes, file.changed) for name, file in sorted(files.items()))]
    digest = hashlib.sha256(json.dumps(content).encode())
    digest.update((store / MANIFEST).read_bytes())
    return digest.hexdigest()[:16]


def _is_whole(folder: Path, files: Mapping[str, _File]) -> bool:
    """Whether the names and sizes of all files are those of the store."""
    found = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return found == {name: file.num_bytes for name, file in files.items()}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes of this node; the system takes the lock from one that is killed.

    The file stays: another process may be waiting with it open.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(store: Path, files: Mapping[str, _File], final: Path) -> None:
    """Copy the store to `final`, in place of a torn copy that may stand there."""
    for leftover in (final, *final.parent.glob(f".{final.name}-*")):  # we have the lock: nobody writes them
        shutil.rmtree(leftover, ignore_errors=True)
    needed = sum(file.num_bytes + SPARE_BYTES for file in files.values())
    free = shutil.disk_usage(final.parent).free
    if free < needed:
        raise TokenStoreError(_too_little(store, final, needed, free))
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        _copy(store, files, temporary)
        if not _is_whole(temporary, files):
            raise TokenStoreError(f"{store}: changed while it was copied to {final.parent}")
        temporary.chmod(0o755)
        temporary.rename(final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            # The free space is that from before: others have filled it since, or a quota is smaller.
            raise TokenStoreError(_too_little(store, final, needed, free) + f"; {error.strerror}") from None
        raise
    sync_folder(final.parent)


def _copy(store: Path, files: Mapping[str, _File], folder: Path) -> None:
    """Copy the files and flush them to disk."""
    for parent in {(folder / name).parent for name in files}:
        parent.mkdir(parents=True, exist_ok=True)

    def copy(name: str) -> int:
        shutil.copyfile(store / name, folder / name)
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        return files[name].num_bytes

    began, total = time.perf_counter(), sum(file.num_bytes for file in files.values())
    console = Console(stderr=True)
    columns = (
        TextColumn("[bold]stage {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress, ThreadPoolExecutor(COPIERS) as pool:
        task = progress.add_task(store.name, total=total)
        copies = [pool.submit(copy, name) for name in files]
        try:
            for done in copies:
                progress.advance(task, done.result())
        finally:
            pool.shutdown(cancel_futures=True)
    seconds = time.perf_counter() - began
    console.print(
        f"{store}: {_size(total)} copied to {folder.parent} on {socket.gethostname()} in {seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )


def _too_little(store: Path, final: Path, needed: int, free: int) -> str:
    others = sorted(path.name for path in final.parent.glob(f"{store.name}-*") if path.is_dir())
    return (
        f"{final.parent} on {socket.gethostname()}: expected {_size(needed)} of free space for a copy of {store}, "
        f"found {_size(free)}" + (f"; older copies there: {', '.join(others)}" if others else "")
    )


def _size(num_bytes: int) -> str:
    """Bytes as people read them, in powers of 1000, as disks are sold."""
    power = min(4, max(0, (len(str(num_bytes)) - 1) // 3))
    return f"{num_bytes / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
