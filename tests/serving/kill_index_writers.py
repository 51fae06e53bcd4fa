"""Writes an index in processes that are killed, each later in its work, and lets one come to its end.

    python kill_index_writers.py build|add|compact FOLDER [POINTS]

Prints one JSON line: after how many events each process was killed, and what the folder held then. A process is killed
(SIGKILL, by itself) at its Nth event of the file system below FOLDER: a file opened, renamed or deleted, a folder made.
The POINTS are spread over all events of a run that was only counted.
Nothing that starts threads runs in this process itself, for its children are forks of it.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from armillary.models.embeddings import EmbeddingTable
from armillary.serving.index.embedding_index import EmbeddingIndex

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.link", "shutil.rmtree", "shutil.copytree"}


def rows(names, seed=0):
    """Rows of these objects, all of images."""
    vectors = np.random.default_rng(seed).normal(size=(len(names), 8)).astype(np.float16)
    unknown = np.full(len(names), np.nan)
    return EmbeddingTable(tuple(names), ("image/hsc",) * len(names), unknown, unknown, vectors, "aligned", "model")


def in_child(work):
    """Run `work` in a fork; its exit status, negative for the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(event_number, folder):
    """From now on, the Nth event below the folder kills this process; none if N is 0. Returns a count of events."""
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event in EVENTS and str(folder) in str(arguments[0]):
            count += 1
            if count == event_number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: count


def build(folder, number):
    """A new index."""

    def work():
        count = kill_at(number, folder.parent)
        EmbeddingIndex.build(rows([f"o-{i}" for i in range(300)]), draft_in=folder.parent).save(folder)
        finish(folder, count(), number)

    return work


def add(folder, number):
    """One more object, and another one fewer."""

    def work():
        index = EmbeddingIndex.load(folder)
        count = kill_at(number, folder)
        index.add(rows([f"added-{number}"], seed=number), labels={"object_id": [f"added-{number}"], "scalar/z": [1.0]})
        acknowledge(folder, f"added-{number}")
        index.remove([f"o-{number}"])
        acknowledge(folder, f"removed-{number}")
        finish(folder, count(), number)

    return work


def compact(folder, number):
    """All changes into a new base."""

    def work():
        index = EmbeddingIndex.load(folder)
        count = kill_at(number, folder)
        index.compact()
        finish(folder, count(), number)

    return work


def acknowledge(folder, what):
    """Write down beside the index that a change has returned."""
    with (folder.parent / "acknowledged").open("a") as file:
        file.write(f"{what}\n")


def finish(folder, count, number):
    """Write down how many events a whole run has."""
    (folder.parent / "count").write_text(str(count))


def content(folder, answer):
    """Objects and neighbours of the index, read in a process of its own."""

    def work():
        index = EmbeddingIndex.load(folder)
        names = index.objects_with("image/hsc")
        found = index.search(index.vectors(names, "image/hsc"), 1).object_id[:, 0].tolist()
        labels = [name for name in names if index.labels_of(name)]
        answer.write_text(json.dumps({"names": names, "found": found, "labelled": labels, "rows": len(index)}))

    return work


def main(what, folder, num_points):
    """Count, then kill and look."""
    work = {"build": build, "add": add, "compact": compact}[what]
    answer = folder.parent / "answer.json"
    if what != "build":
        assert in_child(build(folder, 0)) == 0
    if what == "compact":
        assert in_child(lambda: EmbeddingIndex.load(folder).add(rows(["added-0"]))) == 0
        assert in_child(lambda: EmbeddingIndex.load(folder).remove(["o-0", "o-5"])) == 0
    trial = folder.parent / "trial" / folder.name
    trial.parent.mkdir()
    if what != "build":
        shutil.copytree(folder, trial)
    assert in_child(work(trial, 0)) == 0
    count = int((trial.parent / "count").read_text())
    points = [*range(1, count + 1, max(1, count // num_points)), 0]
    seen = []
    for number in points:
        # Additions go on where the last was killed; what is done once is tried anew.
        place = folder if what == "add" else folder.parent / f"{what}-{number}"
        if what == "compact":
            shutil.copytree(folder, place)
        status = in_child(work(place, number))
        held = None
        if place.exists():
            answer.unlink(missing_ok=True)
            held = json.loads(answer.read_text()) if in_child(content(place, answer)) == 0 else "broken"
        seen.append({"event": number, "status": status, "held": held})
    left = sorted(path.name for path in place.iterdir())
    hidden = sorted(path.name for path in folder.parent.iterdir() if path.name.startswith("."))
    acknowledged = folder.parent / "acknowledged"
    told = acknowledged.read_text().split() if acknowledged.exists() else []
    print(json.dumps({"count": count, "seen": seen, "left": left, "hidden": hidden, "acknowledged": told}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
