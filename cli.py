"""The command `armillary`. Thin: each verb reads its settings and makes one call into a folder below."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .serving.index_place import index_place
from .settings import Settings, SettingsError, find_config, load_settings, to_yaml
from .training import early_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. A user's mistake is one line on stderr, status 2."""
    if "SLURM_JOB_ID" in os.environ:
        early_signals.listen()
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.verb == "submit":
        options.words = [*options.words, *rest]  # words may stand behind options, and flags of `index` are passed on
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("armillary: interrupted; run the same command again to go on from there", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        return _report(error)


def _report(error: Exception) -> int:
    """Say what is wrong in one line if it is the user's to mend, or raise what is ours."""
    from .data.observations import ObservationError
    from .data.publish import PublishError
    from .data.token_shards import TokenStoreError
    from .models.embeddings import EmbeddingsError
    from .tokenizers.pretrained import PretrainedError
    from .training.run_record import RunError
    from .training.signals import Interrupted

    if isinstance(error, RunError):
        print(f"armillary: {error}", file=sys.stderr)  # noqa: T201
        return 1
    if isinstance(error, Interrupted):
        print(f"armillary: {error}", file=sys.stderr)  # noqa: T201
        return 130
    mistakes = (
        SettingsError,
        ObservationError,
        TokenStoreError,
        PublishError,
        EmbeddingsError,
        PretrainedError,
        LookupError,
    )
    if isinstance(error, (*mistakes, FileNotFoundError, ValueError)) and not isinstance(error, (KeyError, IndexError)):
        print(f"armillary: {error}", file=sys.stderr)  # noqa: T201
        return 2
    raise error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="armillary", description="Train and serve multimodal foundation models on scientific observations."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _settings_verb(verbs, "train-tokenizer", "train a tokenizer on a dataset", _train_tokenizer)
    _settings_verb(
        verbs, "tokenizer-report", "measure tokenizers on held-out objects: tables, pictures, a page", _tokenizer_report
    )
    _settings_verb(verbs, "tokenize", "turn a dataset into a store of tokens", _tokenize)
    training = _settings_verb(
        verbs, "pretrain", "train the masked transformer on tokens, on one process or many", _pretrain
    )
    training.add_argument("--profile", action="store_true", help="record a few steps into <run>/profile")
    training.add_argument("--replay", type=Path, metavar="FOLDER", help="repeat a step that stopped a run, and say why")
    _settings_verb(verbs, "align", "train the contrastive head on a pretrained model", _align)
    _settings_verb(verbs, "embed", "embed a store of tokens", _embed)
    _settings_verb(verbs, "evaluate", "measure a checkpoint on held-out objects: tables, pictures, a page", _evaluate)
    _data_verbs(verbs)

    flight = verbs.add_parser("preflight", help="try the GPUs, network and file system of a job, and name bad nodes")
    flight.add_argument("folder", type=Path, help="folder of the file system to try, such as that of the runs")
    flight.add_argument("--minutes-timeout", type=float, default=5.0, metavar="M", help="for processes to come (5)")
    flight.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    flight.add_argument("--least-free", type=float, default=10.0, metavar="GB", help="free space to expect (10)")
    flight.set_defaults(run=_preflight)

    check = verbs.add_parser("coord-check", help="plot the size of activations over width: whether rates transfer")
    check.add_argument("picture", type=Path, help="PNG file to write")
    check.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256], metavar="WIDTH")
    check.add_argument("--steps", type=int, default=5)
    check.set_defaults(run=_coordinate_check)

    index = verbs.add_parser("index", help="build a search index from embeddings")
    index.add_argument("embeddings", type=Path, help="folder of embedding shards")
    index.add_argument("index", type=index_place, help="index folder to write, or http://HOST:19530#NAME of Milvus")
    index.add_argument("--data", type=Path, help="dataset whose scalars become labels for prediction")
    index.add_argument("--held-out", type=Path, help="file of object ids, one in a line, whose labels stay out")
    index.add_argument("--validation", type=Path, help="file of held-out object ids by which predictors are calibrated")
    index.add_argument("--calibrate", action="append", metavar="PROPERTY", help="default: scalar/redshift; repeatable")
    index.add_argument(
        "--query-modality", action="append", metavar="MODALITY", help="ask with these; default: every image modality"
    )
    index.add_argument("--target-modality", metavar="MODALITY", help="neighbours of this modality; default: of any")
    index.add_argument("--metadata", action="append", metavar="NAME", help="scalar to filter by, no label; repeatable")
    index.add_argument("--index-type", metavar="TYPE", help="flat, ivf, ivf_sq8, ivf_rabitq or hnsw; default: by size")
    index.add_argument("--max-memory-gb", type=float, metavar="GB", help="for search structures; default: half of all")
    index.set_defaults(run=_index)

    adding = verbs.add_parser("index-add", help="add embeddings to an index; those that are there are replaced")
    adding.add_argument("index", type=index_place, help="index folder, or Milvus's address")
    adding.add_argument("embeddings", type=Path, help="folder of embedding shards")
    adding.add_argument("--data", type=Path, help="dataset whose scalars become labels and metadata")
    adding.add_argument("--held-out", type=Path, help="file of object ids, one in a line, whose labels stay out")
    adding.set_defaults(run=_index_add)

    removing = verbs.add_parser("index-remove", help="remove objects from an index")
    removing.add_argument("index", type=index_place, help="index folder, or Milvus's address")
    removing.add_argument("objects", type=Path, help="file of object ids, one in a line")
    removing.set_defaults(run=_index_remove)

    information = verbs.add_parser(
        "index-info", help="print what an index is: counts, types and why, recall, checksums"
    )
    information.add_argument("index", type=index_place, help="index folder, or Milvus's address")
    information.set_defaults(run=_index_info)

    serve = verbs.add_parser("serve", help="serve a checkpoint over HTTP")
    serve.add_argument("checkpoint", help="checkpoint folder or Hugging Face Hub id")
    serve.add_argument("--index", type=index_place, help="index folder, or http://HOST:19530#NAME of Milvus")
    serve.add_argument("--probe", action="append", metavar="FOLDER", help="folder or Hub id of a probe; repeatable")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    serve.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    serve.add_argument("--ready-file", type=Path, help="written with the address once requests are answered")
    serve.add_argument("--api-key-file", type=Path, help="file with the key that requests must bear")
    serve.set_defaults(run=_serve)

    diagnose = verbs.add_parser("diagnose", help="plot the spectra of data, embeddings and a probe's loss, and say why")
    diagnose.add_argument("embeddings", type=Path, help="folder of embedding shards")
    diagnose.add_argument("--data", type=Path, help="dataset with the property, and with raw numbers to compare")
    diagnose.add_argument("--property", default="scalar/redshift", help="label of the probe (default scalar/redshift)")
    diagnose.add_argument("--modality", help="embeddings of this modality; default: the most numerous")
    diagnose.add_argument("--output", type=Path, required=True, help="folder to write: report.json, report.txt, PNG")
    diagnose.set_defaults(run=_diagnose)

    demo = verbs.add_parser("demo", help="read, simulate, train, index, serve and report: the whole house in minutes")
    demo.add_argument("--folder", type=Path, default=Path("runs/demo"))
    demo.add_argument("--config", default="demo.yaml")
    demo.add_argument("overrides", nargs="*", metavar="section.key=value")
    demo.set_defaults(run=_demo)

    _slurm_verbs(verbs)

    modalities = verbs.add_parser("modalities", help="list the modalities and their instruments")
    modalities.set_defaults(run=_modalities)
    return parser


def _slurm_verbs(verbs: Any) -> None:
    """`armillary submit`, `status` and `runs`: what is done on a login node."""
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


def _data_verbs(verbs: Any) -> None:
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

    simulate = _settings_verb(verbs, "simulate", "write a dataset of the simulated sky", _simulate, has_output=True)
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


def _settings_verb(
    verbs: Any, name: str, description: str, run: Callable[[Any], int | None], has_output: bool = False
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=description, description=description)
    verb.add_argument("config", help="settings file (YAML), or its path below the shipped configs/")
    if has_output:
        verb.add_argument("output", type=Path, help="folder to write")
    verb.add_argument("overrides", nargs="*", metavar="section.key=value", help="override a setting")
    verb.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")
    verb.set_defaults(run=run)
    return verb


def _run_with(options: argparse.Namespace, settings_type: type[Settings], run: Callable[[Any], object]) -> int:
    settings = load_settings(settings_type, find_config(options.config), options.overrides)
    if options.print_config:
        print(to_yaml(settings), end="")  # noqa: T201
    else:
        run(settings)
    return 0


def _train_tokenizer(options: argparse.Namespace) -> int:
    from .training.tokenizers import TrainTokenizerSettings, train_tokenizer

    return _run_with(options, TrainTokenizerSettings, train_tokenizer)


def _tokenizer_report(options: argparse.Namespace) -> int:
    from .training.tokenizer_report.report import tokenizer_report
    from .training.tokenizer_report.settings import TokenizerReportSettings

    return _run_with(options, TokenizerReportSettings, tokenizer_report)


def _tokenize(options: argparse.Namespace) -> int:
    from .training.tokenize import TokenizeSettings, tokenize

    return _run_with(options, TokenizeSettings, tokenize)


def _pretrain(options: argparse.Namespace) -> int:
    from .training.pretrain import PretrainSettings, pretrain
    from .training.replay import replay

    if options.profile:
        options.overrides = [*options.overrides, "loop.profile=3"]
    if options.replay is None:
        return _run_with(options, PretrainSettings, pretrain)
    return _run_with(options, PretrainSettings, lambda settings: print(*replay(settings, options.replay), sep="\n"))  # noqa: T201


def _align(options: argparse.Namespace) -> int:
    from .training.align import AlignSettings, align

    return _run_with(options, AlignSettings, align)


def _embed(options: argparse.Namespace) -> int:
    from .training.embed import EmbedSettings, embed

    return _run_with(options, EmbedSettings, embed)


def _evaluate(options: argparse.Namespace) -> int:
    from .evaluation.evaluate import evaluate
    from .evaluation.settings import EvaluateSettings

    return _run_with(options, EvaluateSettings, evaluate)


def _simulate(options: argparse.Namespace) -> int:
    from .data.simulation.sky import SkySettings
    from .data.simulation.write_sky import write_simulated_dataset

    def run(settings: SkySettings) -> None:
        write_simulated_dataset(
            settings, options.output, workers=options.workers, part=options.part, num_parts=options.num_parts
        )

    return _run_with(options, SkySettings, run)


def _import(options: argparse.Namespace) -> int:
    from .data.import_survey import import_survey, source_settings

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
    from .data.readers.survey_sources import SOURCES

    for name, source in SOURCES.items():
        print(f"{name:24} {source.description}")  # noqa: T201
    return 0


def _crossmatch(options: argparse.Namespace) -> int:
    from .data.crossmatch.joint_dataset import crossmatch_datasets
    from .data.crossmatch.sky_sources import parse_sources

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
    from .data.dataset import ObservationDataset
    from .data.sky_split import split_positions, write_parts

    chosen = {name: getattr(options, name) for name in ("order", "test", "validation", "margin", "seed")}
    parts = split_positions(ObservationDataset(options.path).positions(), **chosen)
    for name, ids in write_parts(options.output, list(parts), list(parts.values())).items():
        print(f"{name:12} {len(ids)} objects")  # noqa: T201
    return 0


def _validate(options: argparse.Namespace) -> int:
    from rich.console import Console

    from .data.token_manifest import MANIFEST, verify_store
    from .data.validate import validate_dataset

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
    from .data.publish import push_to_hub

    address = push_to_hub(options.path, options.repository, private=not options.public, revision=options.revision)
    print(address)  # noqa: T201
    return 0


def _index(options: argparse.Namespace) -> int:
    from .serving.build_index import CALIBRATED_PROPERTIES, build_index

    manifest = build_index(
        options.embeddings,
        options.index,
        options.data,
        options.held_out,
        tuple(options.calibrate or CALIBRATED_PROPERTIES),
        validation=options.validation,
        query_modalities=tuple(options.query_modality or ()),
        target_modality=options.target_modality,
        metadata=tuple(options.metadata or ()),
        index_type=options.index_type,
        max_memory_gb=options.max_memory_gb,
    )
    print(f"{options.index}: {manifest.index_id}, {manifest.num_rows} rows of {manifest.num_objects} objects")  # noqa: T201
    return 0


def _index_add(options: argparse.Namespace) -> int:
    from .serving.build_index import add_to_index

    manifest = add_to_index(options.index, options.embeddings, options.data, options.held_out)
    print(f"{options.index}: {manifest.index_id}, {manifest.num_rows} rows of {manifest.num_objects} objects")  # noqa: T201
    return 0


def _index_remove(options: argparse.Namespace) -> int:
    from .serving.build_index import remove_from_index

    manifest = remove_from_index(options.index, options.objects)
    print(f"{options.index}: {manifest.index_id}, {manifest.num_rows} rows of {manifest.num_objects} objects")  # noqa: T201
    return 0


def _index_info(options: argparse.Namespace) -> int:
    from .serving.index_open import manifest_text

    print(manifest_text(options.index), end="")  # noqa: T201
    return 0


def _diagnose(options: argparse.Namespace) -> int:
    from .training.diagnose import diagnose

    print(diagnose(options.embeddings, options.output, options.data, options.property, options.modality))  # noqa: T201
    return 0


def _serve(options: argparse.Namespace) -> int:
    from .serving.server import read_key, serve

    serve(
        options.checkpoint,
        options.index,
        host=options.host,
        port=options.port,
        device=options.device,
        ready_file=options.ready_file,
        api_key=None if options.api_key_file is None else read_key(options.api_key_file),
        probes=options.probe or (),
    )
    return 0


def _submit(options: argparse.Namespace) -> int:
    from .slurm.cluster_profile import load_cluster
    from .slurm.job_script import Resources
    from .slurm.launch import launch_chain, launch_stage

    def check_index(words: Sequence[str]) -> object:
        return _parser().parse_args(["index", *words])

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
    from .slurm.run_status import run_status, to_json
    from .slurm.run_tables import show_status

    status = run_status(options.folder)
    if options.json:
        print(json.dumps(to_json(status), indent=2))  # noqa: T201
    else:
        show_status(status)
    return 0


def _runs(options: argparse.Namespace) -> int:
    from .slurm.run_status import find_runs, run_status, to_json
    from .slurm.run_tables import show_runs

    statuses = [run_status(folder) for folder in find_runs(options.folder)]
    if options.json:
        print(json.dumps([to_json(status) for status in statuses], indent=2))  # noqa: T201
    else:
        show_runs(statuses)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from .demo.run import run_demo

    return run_demo(options.folder, options.config, options.overrides)


def _preflight(options: argparse.Namespace) -> int:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what fails is said once, by us
    from .training.preflight import preflight

    return preflight(options.folder, options.minutes_timeout, options.json, 1e9 * options.least_free)


def _coordinate_check(options: argparse.Namespace) -> int:
    from .training.coordinate_check import draw_coordinate_check

    draw_coordinate_check(options.picture, options.widths, options.steps)
    return 0


def _modalities(options: argparse.Namespace) -> int:
    from .data.modalities import MODALITIES

    for modality in MODALITIES:
        print(f"{modality.name:45} {modality.unit:35} {modality.description}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
