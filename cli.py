"""The command `armillary`. Thin: each verb reads its settings and makes one call into a folder below.

Verbs of datasets, indexes and clusters stand in `commands/`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .commands.cluster import cluster_verbs
from .commands.data import data_verbs
from .commands.index import index_verbs
from .commands.keys import keys_verbs
from .commands.settings_verb import run_with, settings_verb
from .serving.index.place import index_place
from .settings import SettingsError
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
    if isinstance(error, SettingsError):
        # The commonest mistake is said at once: the folders below take seconds to load.
        print(f"armillary: {error}", file=sys.stderr)  # noqa: T201
        return 2
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
    settings_verb(verbs, "train-tokenizer", "train a tokenizer on a dataset", _train_tokenizer)
    settings_verb(
        verbs, "tokenizer-report", "measure tokenizers on held-out objects: tables, pictures, a page", _tokenizer_report
    )
    settings_verb(verbs, "tokenize", "turn a dataset into a store of tokens", _tokenize)
    training = settings_verb(
        verbs, "pretrain", "train the masked transformer on tokens, on one process or many", _pretrain
    )
    training.add_argument("--profile", action="store_true", help="record a few steps into <run>/profile")
    training.add_argument("--replay", type=Path, metavar="FOLDER", help="repeat a step that stopped a run, and say why")
    settings_verb(verbs, "align", "train the contrastive head on a pretrained model", _align)
    settings_verb(verbs, "embed", "embed a store of tokens", _embed)
    settings_verb(verbs, "evaluate", "measure a checkpoint on held-out objects: tables, pictures, a page", _evaluate)
    data_verbs(verbs)

    check = verbs.add_parser("coord-check", help="plot the size of activations over width: whether rates transfer")
    check.add_argument("picture", type=Path, help="PNG file to write")
    check.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256], metavar="WIDTH")
    check.add_argument("--steps", type=int, default=5)
    check.set_defaults(run=_coordinate_check)

    index_verbs(verbs)

    serve = verbs.add_parser("serve", help="serve a checkpoint over HTTP")
    serve.add_argument("checkpoint", help="checkpoint folder or Hugging Face Hub id")
    serve.add_argument("--index", type=index_place, help="index folder, or http://HOST:19530#NAME of Milvus")
    serve.add_argument("--probe", action="append", metavar="FOLDER", help="folder or Hub id of a probe; repeatable")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    serve.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    serve.add_argument("--replicas", type=int, metavar="N", help="processes on Ray Serve that answer side by side")
    serve.add_argument("--ray", metavar="ADDRESS", help="a Ray to join (auto, HOST:6379); by default one is started")
    serve.add_argument("--ready-file", type=Path, help="written with the address once requests are answered")
    serve.add_argument("--api-key-file", type=Path, help="file with the key that requests must bear")
    serve.add_argument("--keys", type=Path, metavar="FILE", help="keys of `armillary keys`: who may ask what")
    serve.add_argument("--request-log", metavar="FILE", help="a line of JSON for each request; - is stderr")
    serve.add_argument("--data", type=Path, metavar="FOLDER", help="dataset behind the index: pictures and spectra")
    serve.add_argument("--state", type=Path, metavar="FOLDER", help="where probes and jobs of callers are kept")
    serve.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        dest="overrides",
        help="a setting of serving/server_settings.py, such as engine.max_batch=128; repeatable",
    )
    serve.set_defaults(run=_serve)

    keys_verbs(verbs)

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

    cluster_verbs(verbs)

    modalities = verbs.add_parser("modalities", help="list the modalities and their instruments")
    modalities.set_defaults(run=_modalities)
    return parser


def _train_tokenizer(options: argparse.Namespace) -> int:
    from .training.tokenizers import TrainTokenizerSettings, train_tokenizer

    return run_with(options, TrainTokenizerSettings, train_tokenizer)


def _tokenizer_report(options: argparse.Namespace) -> int:
    from .training.tokenizer_report.report import tokenizer_report
    from .training.tokenizer_report.settings import TokenizerReportSettings

    return run_with(options, TokenizerReportSettings, tokenizer_report)


def _tokenize(options: argparse.Namespace) -> int:
    from .training.tokenize import TokenizeSettings, tokenize

    return run_with(options, TokenizeSettings, tokenize)


def _pretrain(options: argparse.Namespace) -> int:
    from .training.pretrain import PretrainSettings, pretrain
    from .training.replay import replay

    if options.profile:
        options.overrides = [*options.overrides, "loop.profile=3"]
    if options.replay is None:
        return run_with(options, PretrainSettings, pretrain)
    return run_with(options, PretrainSettings, lambda settings: print(*replay(settings, options.replay), sep="\n"))  # noqa: T201


def _align(options: argparse.Namespace) -> int:
    from .training.align import AlignSettings, align

    return run_with(options, AlignSettings, align)


def _embed(options: argparse.Namespace) -> int:
    from .training.embed import EmbedSettings, embed

    return run_with(options, EmbedSettings, embed)


def _evaluate(options: argparse.Namespace) -> int:
    from .evaluation.evaluate import evaluate
    from .evaluation.settings import EvaluateSettings

    return run_with(options, EvaluateSettings, evaluate)


def _diagnose(options: argparse.Namespace) -> int:
    from .training.diagnose import diagnose

    print(diagnose(options.embeddings, options.output, options.data, options.property, options.modality))  # noqa: T201
    return 0


def _serve(options: argparse.Namespace) -> int:
    from .serving.allocator import keep_freed_memory

    keep_freed_memory()
    from .serving.served import Served
    from .serving.server import read_key, serve
    from .serving.server_settings import ServerSettings
    from .settings import load_settings

    served = Served(
        options.checkpoint,
        options.index,
        host=options.host,
        device=options.device,
        api_key=None if options.api_key_file is None else read_key(options.api_key_file),
        probes=tuple(options.probe or ()),
        data=options.data,
        state=options.state,
        keys=options.keys,
        request_log=options.request_log,
        settings=load_settings(ServerSettings, None, options.overrides),
    )
    if options.replicas is None and options.ray is None:
        serve(served, options.port, ready_file=options.ready_file)
        return 0
    from .serving.replicas import serve_replicas

    number = 1 if options.replicas is None else options.replicas
    serve_replicas(served, number, options.port, ray_address=options.ray, ready_file=options.ready_file)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from .demo.run import run_demo

    return run_demo(options.folder, options.config, options.overrides)


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
