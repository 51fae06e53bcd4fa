"""What all verbs with a settings file share: their arguments, and how settings are read."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..settings import Settings, find_config, load_settings, to_yaml


def settings_verb(
    verbs: Any, name: str, description: str, run: Callable[[Any], int | None], has_output: bool = False
) -> argparse.ArgumentParser:
    """A verb that takes a settings file and overrides; `run` gets the parsed options."""
    verb = verbs.add_parser(name, help=description, description=description)
    verb.add_argument("config", help="settings file (YAML), or its path below the shipped configs/")
    if has_output:
        verb.add_argument("output", type=Path, help="folder to write")
    verb.add_argument("overrides", nargs="*", metavar="section.key=value", help="override a setting")
    verb.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")
    verb.set_defaults(run=run)
    return verb


def run_with(options: argparse.Namespace, settings_type: type[Settings], run: Callable[[Any], object]) -> int:
    """Read the settings that the options name, and print them or call `run` with them; returns the exit status."""
    settings = load_settings(settings_type, find_config(options.config), options.overrides)
    if options.print_config:
        print(to_yaml(settings), end="")  # noqa: T201
    else:
        run(settings)
    return 0
