"""What /openapi.json says is what the server does: schemathesis asks it thousands of things, right and wrong."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_model import FakeModel

from armillary.serving.app import create_app
from armillary.serving.index.opening import open_index

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
LEAST_CASES = 3000


@pytest.mark.slow
def test_no_request_gets_a_fault_or_an_answer_that_is_not_documented(index_folder, run, tmp_path):
    place = shutil.copytree(index_folder, tmp_path / "index")
    app = create_app(FakeModel(), *open_index(place), state=tmp_path / "state")
    app.state.service.reopen = lambda: open_index(place)
    with run(app) as url:
        done = subprocess.run(
            [
                *(str(Path(sys.executable).parent / "st"), "run", f"{url}/openapi.json", "--checks", CHECKS),
                *("--phases", "examples,coverage,fuzzing", "--max-examples", "40", "--seed", "1", "--no-color"),
                # The plane of the map takes its time when it is first asked for.
                *("--exclude-path-regex", "/map$", "--request-timeout", "60"),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) generated, \1 passed", done.stdout)[1]) > LEAST_CASES, done.stdout[-3000:]
