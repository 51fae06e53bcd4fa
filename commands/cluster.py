"""`armillary submit`, `status`, `runs` and `preflight`."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..settings import SettingsError
from .index import index_verbs


def cluster_verbs(verbs: Any) -> None:
    """What is done on a login node, and the trial of a job's nodes."""
    description = "submit a stage, or a chain of them, to Slurm; docs/cluster.md"
    submit = verbs.add_parser("submit", help=description, description=description, allow_abbrev=False)
    submit.add_argument("stage", help="train-tokenizer, tokenize, pretrain, align, embed, index, or chain")
    submit.add_argument(
        "words", nargs="*", metavar="WORD", help="settings files and section.key=value; arguments of index"
    )
    submit.add_argument(
        "--cluster", metavar="NAME", help="profile in configs/clusters, or its path; $ARMILLARY_CLUSTER"
    )
    submit.add_argument("--dry-run", action="store_true", help="show the script, and submit nothing")
    submit.add_argument("--from", dest="first", metavar="STAGE", help="of a chain: start here, what is before is done")
    asked = submit.add_argument_group("resources")
    asked.add_argument("--nodes", type=int)
    asked.add_argument("--gpus-per-node", type=int, metavar="N", help="with one process for each")
    asked.add_argument("--tasks-per-node", type=int, metavar="N", help="processes of a node without GPUs")
    asked.add_argument("--cpus-per-task", type=int, metavar="N", help="cores of each process")
    asked.add_argument("--time", metavar="LIMIT", help="20:00:00, 2-12 (days-hours) or minutes")
    asked.add_argument("--partition")
    asked.add_argument("--account")
    asked.add_argument("--qos")
    asked.add_argument("--array", metavar="TASKS", help="0-63, 0-63%%8 (eight at once), 3,7")
    asked.add_argument("--job-name", metavar="NAME")
    asked.add_argument("--dependency", metavar="RULE", help="afterok:JOB, ...")
    asked.add_argument(
        "--sbatch-option", dest="sbatch_options", action="append", metavar="--NAME=VALUE", help="repeatable"
    )
    asked.add_argument("--preflight", action="store_true", default=None, help="try the nodes before training starts")
    asked.add_argument("--stage-tokens", metavar="FOLDER", help="copy token shards to this folder of each node first")
    submit.set_defaults(run=_submit)

    status = verbs.add_parser("status", help="what a run is doing, by its folder and Slurm's queue")
    status.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)

    runs = verbs.add_parser("runs", help="list the runs in a folder")
    runs.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="default: runs")
    runs.add_argument("--json", action="store_true")
    runs.set_defaults(run=_runs)

    flight = verbs.add_parser("preflight", help="try the GPUs, network and file system of a job, and name bad nodes")
    flight.add_argument("folder", type=Path, help="folder of the file system to try, such as that of the runs")
    flight.add_argument("--minutes-timeout", type=float, default=5.0, metavar="M", help="for processes to come (5)")
    flight.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    flight.add_argument("--least-free", type=float, default=10.0, metavar="GB", help="free space to expect (10)")
    flight.set_defaults(run=_preflight)


def _submit(options: argparse.Namespace) -> int:
    from ..slurm.cluster_profile import load_cluster
    from ..slurm.job_script import Resources
    from ..slurm.launch import launch_chain, launch_stage

    def check_index(words: Sequence[str]) -> object:
        parser = argparse.ArgumentParser(prog="armillary")
        index_verbs(parser.add_subparsers(required=True))
        return parser.parse_args(["index", *words])

    cluster = load_cluster(options.cluster)
    asked = {name: value for name in Resources.model_fields if (value := getattr(options, name)) is not None}
    if options.stage == "chain":
        launch_chain(options.words, asked, cluster, check_index, options.first, options.dry_run)
    elif options.first is not None:
        raise SettingsError("--from is for a chain: armillary submit chain CHAIN --from STAGE")
    else:
        launch_stage(options.stage, options.words, asked, cluster, check_index, options.dry_run)
    return 0


def _status(options: argparse.Namespace) -> int:
    from ..slurm.run_status import run_status, to_json
    from ..slurm.run_tables import show_status

    status = run_status(options.folder)
    if options.json:
        print(json.dumps(to_json(status), indent=2))  # noqa: T201
    else:
        show_status(status)
    return 0


def _runs(options: argparse.Namespace) -> int:
    from ..slurm.run_status import find_runs, run_status, to_json
    from ..slurm.run_tables import show_runs

    statuses = [run_status(folder) for folder in find_runs(options.folder)]
    if options.json:
        print(json.dumps([to_json(status) for status in statuses], indent=2))  # noqa: T201
    else:
        show_runs(statuses)
    return 0


def _preflight(options: argparse.Namespace) -> int:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what fails is said once, by us
    from ..training.preflight import preflight

    return preflight(options.folder, options.minutes_timeout, options.json, 1e9 * options.least_free)
