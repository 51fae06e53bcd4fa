"""Every snippet of docs/probes_and_jobs.md, in order, against a live server."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import safetensors.numpy
from fake_model import FakeModel, images

import armillary
from armillary.serving.app import create_app

TEXT = (Path(armillary.__file__).parent / "docs" / "probes_and_jobs.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_every_snippet_runs_and_says_what_the_text_promises(index, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = images(12)
    safetensors.numpy.save_file(
        {"flux": given.flux.numpy()}, "objects.safetensors", {"modality": "image/hsc", "bands": "g,r"}
    )
    with run(create_app(FakeModel(), index, state=tmp_path / "state")) as url:
        names = {"SERVER": url}
        answers = []
        for language, code in SNIPPETS:
            if language == "sh":
                done = subprocess.run(
                    ["bash", "-euc", code], capture_output=True, text=True, env={**os.environ, "SERVER": url}
                )
                assert done.returncode == 0, done.stderr
                answers.append(done.stdout)
            else:
                assert language == "python"
                exec(compile(code, "docs/probes_and_jobs.md", "exec"), names)
        card, job = answers
        assert '"num_labels":4' in card
        assert '"phase":"QUEUED"' in job
        server = names["server"]
        assert {probe["label"] for probe in server.get("/v1/probes").json()["probes"]} == {
            "scalar/redshift",
            "distance",
        }
        assert names["card"]["scores"]["accuracy"] > 0.9
        assert names["one"]["value"] == "far"
        assert len(names["many"]["data"]) == 80
        assert names["probe"].predict(names["vectors"][:1])[0] == "near"
        assert names["found"]["kind"] == "scalar"
        assert names["job"]["phase"] == "COMPLETED"
        assert names["table"].num_rows == 3 * 80
        (embed,) = [found for found in server.get("/v1/jobs").json()["jobs"] if found["kind"] == "embed"]
        finished = server.get(embed["links"]["self"], params={"wait": 30}).json()
        assert (finished["phase"], finished["progress"]["done"]) == ("COMPLETED", 12)
    assert capsys.readouterr().out.count("\n") >= 7


@pytest.mark.parametrize("language", ["sh", "python"])
def test_there_are_snippets(language):
    assert sum(kind == language for kind, _ in SNIPPETS) >= 2
