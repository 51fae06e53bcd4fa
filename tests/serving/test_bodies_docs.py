"""Every snippet of docs/bodies.md, in order, against a live server."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
from fake_model import FakeModel

import armillary
from armillary.data.real_files import real_file
from armillary.serving.app import create_app

TEXT = (Path(armillary.__file__).parent / "docs" / "bodies.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_every_snippet_runs_and_gives_vectors(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("hsc-10054-r.fits", "desi-coadd-sv3-dark-26065.fits"):
        shutil.copy(real_file(name), tmp_path)
    shell = []
    with run(create_app(FakeModel())) as url:
        names = {"SERVER": url}
        for language, code in SNIPPETS:
            if language == "sh":
                command = ["bash", "-euc", code]
                done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SERVER": url})
                assert done.returncode == 0, done.stderr
                shell.append(json.loads(done.stdout)["data"][0]["embedding"])
            else:
                exec(compile(code, "docs/bodies.md", "exec"), names)
    raw, form = shell
    np.testing.assert_array_equal(raw, form)
    said = capsys.readouterr().out.splitlines()
    assert [line.endswith(" 8") for line in said[:5]] == [False, False, True, False, True]
    assert said[5].startswith("['small', 'large'] fixed_size_list<")
