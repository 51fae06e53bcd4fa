"""docs/client.md runs as it stands, block after block, against a live server."""

import re
import textwrap
from pathlib import Path

import pytest
from generating_model import GeneratingModel

import armillary
from armillary.serving.app import create_app

DOCUMENT = Path(armillary.__file__).parent / "docs" / "client.md"
ADDRESS = "http://127.0.0.1:8000"


def blocks():
    found = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in found]


@pytest.fixture
def names(index, run, tmp_path, monkeypatch):
    """The names that the blocks share, with the address of a live server in place of the document's."""
    monkeypatch.chdir(tmp_path)
    # No checkpoint of the demo is here; the client is compared with a real model's signature elsewhere.
    monkeypatch.setattr(armillary, "load", lambda path: GeneratingModel())
    with run(create_app(GeneratingModel(), index, api_key="secret", state=tmp_path / "state")) as url:
        shared = {"__name__": "docs", "ADDRESS": url}
        yield shared
        for client in (shared.get("client"), shared.get("patient")):
            if client is not None:
                client.close()


def test_every_block_runs(names, capsys):
    for number, block in enumerate(blocks()):
        code = compile(block.replace(f'"{ADDRESS}"', "ADDRESS"), f"{DOCUMENT.name}, block {number}", "exec")
        exec(code, names)
    printed = capsys.readouterr().out
    assert "say zero_point" in printed
    assert "the nearest known is 'object-119'" in printed
    assert names["magnitudes"].values.tolist() == pytest.approx([21.202, 20.189], abs=1e-3)
    assert len(names["done"]) == 200
    assert [one.index for one in names["found"].errors] == [1]
    assert "torn.fits" in str(names["found"].errors[0].error)
    assert len(names["near"]) == 5
    assert names["probe"].num_labels == 60
    assert names["samples"].values().shape[:2] == (16, 1)
    assert names["done"].object_id[0] == "new-0"
    assert (Path("vectors.parquet").stat().st_size) > 0


def test_no_address_of_the_document_escapes_the_test():
    assert all(ADDRESS not in block.replace(f'"{ADDRESS}"', "") for block in blocks())
    assert len(blocks()) > 10
