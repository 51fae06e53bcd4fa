"""`armillary demo`: all stages in order. Interrupted, it goes on where it stood; done, it shows its report again."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..settings import SettingsError, find_config, load_settings, to_yaml
from ..training.metrics_log import console
from . import stages
from .ask_server import ask, serve_command
from .evaluation import evaluate
from .report import write_report
from .settings import DemoSettings

STAGES: dict[str, Callable[[Path, DemoSettings], None]] = {
    "read and simulate": stages.make_data,
    "train tokenizers": stages.train_tokenizers,
    "tokenize": stages.make_tokens,
    "pretrain": stages.pretrain_model,
    "align": stages.align_model,
    "embed": stages.embed_objects,
    "index": stages.index_objects,
    "measure": evaluate,
    "ask over HTTP": ask,
}


def run_demo(folder: Path, config: str = "demo.yaml", overrides: Sequence[str] = ()) -> int:
    """Run the stages that are not done yet, and write the report. Returns the exit status.

    Raises SettingsError if the folder was made with other settings.
    """
    settings = load_settings(DemoSettings, find_config(config), overrides)
    _claim(folder, settings)
    done = _read_done(folder)
    for number, (name, stage) in enumerate(STAGES.items(), start=1):
        if name in done:
            continue
        console.rule(f"{number}/{len(STAGES)} {name}", align="left")
        start = time.perf_counter()
        stage(folder, settings)
        done[name] = time.perf_counter() - start
        _write_done(folder, done)
    report = write_report(folder, settings, done)
    print(f"Report: {report.resolve()}")  # noqa: T201
    program = sys.argv[0] if Path(sys.argv[0]).name == "armillary" else "armillary"
    print(f"Serve the model: {program} {' '.join(serve_command(folder))}")  # noqa: T201
    return 0


def _claim(folder: Path, settings: DemoSettings) -> None:
    """Mark the folder as made with these settings, or refuse one made with others."""
    path = folder / "settings.yaml"
    wanted = to_yaml(settings)
    if path.is_file() and path.read_text(encoding="utf-8") != wanted:
        raise SettingsError(f"{folder}: made with other settings ({path}); choose another --folder, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(wanted, encoding="utf-8")


def _read_done(folder: Path) -> dict[str, float]:
    """Seconds of each stage that is done."""
    path = folder / "stages.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_done(folder: Path, done: dict[str, float]) -> None:
    temporary = folder / "stages.json.tmp"
    temporary.write_text(json.dumps(done), encoding="utf-8")
    temporary.replace(folder / "stages.json")
