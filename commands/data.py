"""`armillary data VERB`: what makes and checks datasets."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .settings_verb import run_with, settings_verb

if TYPE_CHECKING:
    pass


def data_verbs(verbs: Any) -> None:
    """`armillary data VERB`: what makes and checks datasets."""
    group = verbs.add_parser("data", help="import, simulate, cross-match, check and publish datasets")
    verbs = group.add_subparsers(dest="data_verb", required=True, metavar="VERB")

    importing = verbs.add_parser("import", help="turn a survey's files into a dataset")
    importing.add_argument("source", help="a format of `armillary data sources`")
    importing.add_argument("paths", nargs="+", type=Path, help="files or folders of the survey")
    importing.add_argument("output", type=Path, help="dataset folder to write, or to add to")
    importing.add_argument("--settings", type=Path, metavar="FILE", help="settings of the source (YAML)")
    importing.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    importing.add_argument("--allow-unplaced", action="store_true", help="keep objects without a position")
    importing.add_argument("--skip-errors", action="store_true", help="leave out files that cannot be read; status 1")
    importing.set_defaults(run=_import)

    sources = verbs.add_parser("sources", help="list the survey formats that import reads")
    sources.set_defaults(run=_sources)

    simulate = settings_verb(verbs, "simulate", "write a dataset of the simulated sky", _simulate, has_output=True)
    simulate.add_argument("--workers", type=int, default=1, help="processes")
    simulate.add_argument("--part", type=int, default=0, help="this job's part of the shards, from 0")
    simulate.add_argument("--num-parts", type=int, default=1, help="jobs that share the work")

    match = verbs.add_parser("crossmatch", help="find the same objects in several surveys, and join their datasets")
    match.add_argument("sources", nargs="+", metavar="A B ...", help="datasets, HATS catalogues, tables; NAME=PATH")
    match.add_argument("output", type=Path, help="folder to write: associations.parquet, and the joint dataset")
    match.add_argument("--radius", type=float, default=1.0, help="arcsec (default 1)")
    match.add_argument("--mode", choices=("one-to-one", "nearest", "all"), default="one-to-one")
    match.add_argument("--engine", choices=("auto", "tree", "lsdb"), default="auto")
    match.add_argument("--scheduler", metavar="ADDRESS", help="Dask scheduler, such as tcp://host:8786; implies lsdb")
    match.add_argument("--epoch", type=float, help="Julian year to which proper motions are followed")
    match.add_argument("--min-surveys", type=int, default=2, help="keep objects found in at least so many")
    match.add_argument(
        "--set", action="append", default=[], metavar="NAME.KEY=VALUE", help="of a source: object_id, ra, epoch, ..."
    )
    match.add_argument(
        "--take", action="append", default=[], metavar="NAME=MODALITY,...", help="modalities of a source; default: all"
    )
    match.set_defaults(run=_crossmatch)

    split = verbs.add_parser("split", help="divide objects into training, validation and test, by region of the sky")
    split.add_argument("path", type=Path, help="dataset")
    split.add_argument("output", type=Path, help="folder to write: train.txt, validation.txt, test.txt, held-out.txt")
    split.add_argument("--order", type=int, default=5, help="HEALPix order of the regions (5: 1.8 degrees)")
    split.add_argument("--test", type=float, default=0.1, metavar="SHARE", help="of the regions (0.1)")
    split.add_argument("--validation", type=float, default=0.1, metavar="SHARE", help="of the regions (0.1)")
    split.add_argument(
        "--margin", type=float, default=60.0, metavar="ARCSEC", help="nearer to other parts: left out (60)"
    )
    split.add_argument("--seed", type=int, default=0, help="another division")
    split.set_defaults(run=_split)

    validate = verbs.add_parser("validate", help="check every byte of a dataset (docs/data.md) or of a token store")
    validate.add_argument("path", type=Path)
    validate.set_defaults(run=_validate)

    push = verbs.add_parser("push", help="publish a dataset on the Hugging Face Hub")
    push.add_argument("path", type=Path)
    push.add_argument("repository", help="OWNER/NAME on the Hub")
    push.add_argument("--public", action="store_true", help="by default the repository is private")
    push.add_argument("--revision", help="branch to write; default: main")
    push.set_defaults(run=_push)


def _simulate(options: argparse.Namespace) -> int:
    from ..data.simulation.sky import SkySettings
    from ..data.simulation.write_sky import write_simulated_dataset

    def run(settings: SkySettings) -> None:
        write_simulated_dataset(
            settings, options.output, workers=options.workers, part=options.part, num_parts=options.num_parts
        )

    return run_with(options, SkySettings, run)


def _import(options: argparse.Namespace) -> int:
    from ..data.import_survey import import_survey, source_settings

    summary = import_survey(
        options.source,
        options.paths,
        options.output,
        source_settings(options.source, options.settings, options.set),
        on_error="skip" if options.skip_errors else "stop",
        allow_unplaced=options.allow_unplaced,
    )
    print(summary.report())  # noqa: T201
    return 1 if summary.skipped else 0


def _sources(options: argparse.Namespace) -> int:
    from ..data.readers.survey_sources import SOURCES

    for name, source in SOURCES.items():
        print(f"{name:24} {source.description}")  # noqa: T201
    return 0


def _crossmatch(options: argparse.Namespace) -> int:
    from ..data.crossmatch.joint_dataset import crossmatch_datasets
    from ..data.crossmatch.sky_sources import parse_sources

    summary = crossmatch_datasets(
        parse_sources(options.sources, options.set),
        options.output,
        options.radius,
        mode=options.mode,
        min_surveys=options.min_surveys,
        engine=options.engine,
        epoch=options.epoch,
        scheduler=options.scheduler,
        modalities={name: tuple(taken.split(",")) for name, _, taken in (word.partition("=") for word in options.take)},
    )
    found = "pairs" if options.mode != "one-to-one" else "objects"
    print(f"{options.output / 'associations.parquet'}: {summary.num_objects} {found}")  # noqa: T201
    for name, count in sorted(summary.num_rows.items()):
        print(f"  {name}: {count} objects")  # noqa: T201
    return 0


def _split(options: argparse.Namespace) -> int:
    from ..data.dataset import ObservationDataset
    from ..data.sky_split import split_positions, write_parts

    chosen = {name: getattr(options, name) for name in ("order", "test", "validation", "margin", "seed")}
    parts = split_positions(ObservationDataset(options.path).positions(), **chosen)
    for name, ids in write_parts(options.output, list(parts), list(parts.values())).items():
        print(f"{name:12} {len(ids)} objects")  # noqa: T201
    return 0


def _validate(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ..data.token_manifest import MANIFEST, verify_store
    from ..data.validate import validate_dataset

    if (options.path / MANIFEST).is_file():
        count = verify_store(options.path, Console(stderr=True))
        print(f"{options.path}: {count} shards of tokens, nothing wrong")  # noqa: T201
        return 0
    problems = validate_dataset(options.path)
    for problem in problems:
        print(problem)  # noqa: T201
    print(f"{options.path}: {f'{len(problems)} problem(s)' if problems else 'nothing wrong'}")  # noqa: T201
    return 1 if problems else 0


def _push(options: argparse.Namespace) -> int:
    from ..data.publish import push_to_hub

    address = push_to_hub(options.path, options.repository, private=not options.public, revision=options.revision)
    print(address)  # noqa: T201
    return 0
