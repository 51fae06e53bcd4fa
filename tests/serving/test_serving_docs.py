"""docs/serving.md does what it says: its snippets are executed in order against a server."""

import os
import re
import subprocess
from pathlib import Path

import armillary
from armillary.serving.app import create_app

PAGE = Path(armillary.__file__).parent / "docs" / "serving.md"


def test_the_page_on_serving_does_what_it_says(model, index_folder, run):
    from armillary.serving.index.opening import open_index

    app = create_app(model, *open_index(index_folder))
    app.state.service.reopen = lambda: open_index(index_folder)
    said = []
    with run(app) as url:
        for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.M):
            if language == "python":
                exec(text, {"URL": url})
                continue
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                env={**os.environ, "URL": url},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
            said.append(done.stdout)
    about, asked, inferred, wrong, watched, reloaded = said
    assert '"status":"alive"' in about
    assert '"max_items":256' in about
    assert asked.count('"similarity"') >= 3
    assert '"property":"scalar/redshift"' in asked
    assert '"model_name": "image.hsc"' in inferred
    assert "image/hsc" in wrong  # the nearest known modality
    assert "Retry-After" in wrong
    assert "armillary_cache_lookups_total" in watched
    assert '"index_id"' in reloaded
