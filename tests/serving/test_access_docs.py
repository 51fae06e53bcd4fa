"""docs/access.md does what it says: its snippets are executed in order, and answer what stands below them."""

import contextlib
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import armillary
from armillary import cli
from armillary.serving.server_settings import ServerSettings
from armillary.settings import load_settings

LOGGER = logging.getLogger("armillary.access")
PAGE = Path(armillary.__file__).parent / "docs" / "access.md"


def snippets():
    """(language, text) of each block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def wait_for_line(words):
    """The log has its line a moment after the caller has the answer."""
    until = time.monotonic() + 20
    while words not in Path("requests.jsonl").read_text() and time.monotonic() < until:
        time.sleep(0.01)


def test_the_options_that_the_page_names_are_those_of_the_commands(capsys):
    text = PAGE.read_text(encoding="utf-8")
    known = ""
    for words in (["serve"], ["keys", "add"]):
        with pytest.raises(SystemExit):
            cli.main([*words, "--help"])
        known += capsys.readouterr().out
    options = set(re.findall(r"(?<!\S)`?(--[a-z][a-z-]+)", text))
    assert len(options) >= 7
    assert {option for option in options if option not in known} == set()
    values = re.findall(r"--set '([^']+)'", text)
    assert len(values) == 2
    settings = load_settings(ServerSettings, None, values)
    assert settings.cors_origins == ("https://sky.example.org",)
    assert settings.hosts == ("127.0.0.1", "localhost")


def test_the_page_on_access_does_what_it_says(model, index, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = tmp_path / "bin" / "armillary"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m armillary.cli "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}
    names = {"model": model, "index": index}
    before = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    executed, said = [], ""
    with contextlib.ExitStack() as servers:
        for language, text in snippets():
            if language == "sh":
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", text], env=environment, capture_output=True, text=True
                )
                assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
                said = done.stdout
            elif language == "python":
                if text.startswith("import json"):
                    wait_for_line("/search")
                exec(text, names)
                if "app" in names and "url" not in names:
                    names["url"] = environment["URL"] = servers.enter_context(run(names["app"]))
            elif language == "text":
                assert said.strip() == text.strip()
            executed.append(language)
        for handler in LOGGER.handlers:
            handler.close()
        LOGGER.handlers[:], LOGGER.level, LOGGER.propagate = before
    assert (executed.count("sh"), executed.count("python"), executed.count("text")) == (5, 6, 2)
    assert len({neighbour.object_id for neighbour in names["neighbours"]} - {"object-3"}) == 2
    assert [line["path"] for line in names["lines"]][-1] == "/v1/collections/objects/search"
    assert all(key is None or key.startswith("k-") for key in names["by_key"])
    assert len(names["by_key"]) == 1
    assert names["slow"] == [line for line in names["lines"] if line["ms"] > 1000]
