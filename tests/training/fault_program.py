"""A program for tests of faults: it imports torch once, and then forks a small run for each line it reads.

A line is JSON: `folder`, `num_processes`, `loop` (settings), `seconds` of a step, `noise` (random numbers in the loss),
`hang_at` (a step whose data never comes). It answers with the pids, and, when all have ended, their exit statuses.
What a process prints goes to <out>/<rank>.out, by default in `folder`.
"""

import itertools
import json
import os
import socket
import sys
import time
from pathlib import Path

import torch
from torch import nn

from armillary.training.loop import LoopSettings, leave, make_fabric, train
from armillary.training.run_record import RunError
from armillary.training.signals import Interrupted

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, -2.0, 0.5]) + 0.3


class Regression(nn.Module):
    fingerprint = "forty points"

    def __init__(self, order, rank):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
        self.order, self.rank = order, rank

    def batches(self, first_step):
        share = 8 // self.order["num_processes"]
        for step in itertools.count(first_step):
            time.sleep(self.order["seconds"])
            if step == self.order["hang_at"]:
                time.sleep(1000)
            first = 8 * step + self.rank * share
            rows = torch.arange(first, first + share) % len(X)
            yield X[rows], Y[rows]

    def forward(self, batch):
        x, y = batch.content
        noise = torch.randn(len(x)) * self.order["noise"]
        errors = (self.layers(x)[:, 0] - y + noise) ** 2
        count = torch.tensor(float(len(x)))
        return errors.sum(), count, {"worst": torch.stack([errors.detach().sum(), count])}


def run(order, rank, port):
    count = order["num_processes"]
    if count > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
        os.environ |= {name: str(value) for name, value in numbers.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "faults"}
    settings = LoopSettings(
        **{"batch_size": 8, "learning_rate": 0.1, "warmup_steps": 2, "precision": "32-true", "loggers": ()},
        **{"steps": 40, "log_every": 3, "checkpoint_every": 4, "devices": count, **order["loop"]},
    )
    fabric = make_fabric(settings, can_divide=True)
    torch.manual_seed(rank if order["noise"] else 0)
    train(fabric, Regression(order, rank), settings, order["folder"], "test")
    leave(fabric)


def child(order, rank, port):
    folder = Path(order["out"] or order["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{rank}.out").open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        status = 0
        try:
            run(order, rank, port)
        except Interrupted:
            status = 130
        except RunError as error:
            print(f"armillary: {error}", flush=True)
            status = 1
        except BaseException as error:
            print(repr(error), flush=True)
            status = 99
        os._exit(status)


torch.set_num_threads(1)
for line in sys.stdin:
    order = {
        "num_processes": 1,
        "loop": {},
        "seconds": 0.002,
        "noise": 1.0,
        "hang_at": None,
        "out": None,
        **json.loads(line),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(order["num_processes"]):
        pid = os.fork()
        if pid == 0:
            child(order, rank, port)
        pids.append(pid)
    print(json.dumps(pids), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
