import re
from pathlib import Path

import numpy as np
import pytest
from http_bodies import assert_problem
from starlette.testclient import TestClient

from armillary.serving.app import create_app
from armillary.serving.explorer_page import CONTENT_POLICY, assets


@pytest.fixture
def http(model, index):
    with TestClient(create_app(model, index)) as client:
        yield client


def test_the_page_is_at_the_root_and_names_only_files_that_are_there(http):
    answer = http.get("/", follow_redirects=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    named = re.findall(r'(?:src|href)="(/[^"]*)"', answer.text)
    assert len(named) > 4
    for path in named:
        assert http.get(path).status_code == 200, path


def test_scripts_import_only_files_that_are_there(http):
    scripts = [name for name in assets() if name.endswith(".js") and not name.startswith("vendor/")]
    assert len(scripts) > 8
    for name in scripts:
        for imported in re.findall(r'from "(.*?)"', assets()[name].content.decode()):
            assert imported.startswith("./")
            answer = http.get(f"/explorer/{imported[2:]}")
            assert answer.status_code == 200, (name, imported)
            assert answer.headers["content-type"].startswith("text/javascript")


def test_the_policy_lets_nothing_in_but_this_server(http):
    directives = dict(part.split(maxsplit=1) for part in CONTENT_POLICY.split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["style-src"] == directives["connect-src"] == "'self'"
    assert "unsafe" not in CONTENT_POLICY
    assert "http" not in CONTENT_POLICY
    for path in ("/", "/explorer/explorer.js", "/explorer/explorer.css"):
        assert http.get(path).headers["content-security-policy"].startswith(CONTENT_POLICY)


def test_the_page_has_no_inline_script_or_style(http):
    page = http.get("/").text
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    assert re.findall(r"<script([^>]*)>(.*?)</script>", page) == [(' type="module" src="/explorer/explorer.js"', "")]


def test_no_script_of_ours_names_another_host_or_writes_html():
    for name, asset in assets().items():
        if name.startswith("vendor/") or not name.endswith((".js", ".html", ".css")):
            continue
        text = asset.content.decode()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )


def test_an_asset_that_the_browser_has_is_not_sent_again(http):
    first = http.get("/explorer/vendor/vendor.js")
    assert len(first.content) > 100_000
    again = http.get("/explorer/vendor/vendor.js", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert not again.content
    assert http.get("/explorer/explorer.js", headers={"If-None-Match": first.headers["etag"]}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "nothing.js",
        "../explorer_page.py",
        "..%2Fexplorer_page.py",
        "%2Fetc%2Fpasswd",
        "vendor/build.mjs",
        "vendor/",
        "",
    ],
)
def test_nothing_but_the_files_of_the_page_is_served(http, path):
    assert_problem(http.get(f"/explorer/{path}"), 404, "not-found")


def test_the_page_is_open_where_the_api_needs_a_key(model, index):
    with TestClient(create_app(model, index, api_key="secret")) as client:
        assert client.get("/").status_code == 200
        assert client.get("/explorer/explorer.js").status_code == 200
        assert client.get("/v1/collections/objects/map").status_code == 401
        assert client.get("/v1/objects/object-0/image.jpg").status_code == 401


def test_the_snippet_of_the_docs_runs(model, index, run, capsys):
    text = (Path(__file__).parents[2] / "docs" / "explorer.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.S)
    with run(create_app(model, index)) as url:
        exec(compile(snippet, "docs/explorer.md", "exec"), {"URL": url})
    assert capsys.readouterr().out.count("(120,)") == 3


def test_the_docs_name_routes_that_are_there(http):
    text = (Path(__file__).parents[2] / "docs" / "explorer.md").read_text(encoding="utf-8")
    named = {
        path.replace("{c}", "{collection}").replace("{id}", "{object_id}")
        for path in re.findall(r"`(/v1/[^?`]*)", text)
    }
    assert named <= http.get("/openapi.json").json()["paths"].keys()
    assert len(named) > 6


def relative_luminance(colour):
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("theme", [":root", ':root[data-theme="dark"]'])
def test_text_stands_out_from_what_is_behind_it_as_wcag_asks(theme):
    style = assets()["explorer.css"].content.decode()
    (block,) = re.findall(rf"^{re.escape(theme)} {{(.*?)^}}", style, re.S | re.M)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", block))
    inks = ("text", "soft", "faint", "accent", "more", "less")
    pairs = [(ink, paper) for ink in inks for paper in ("page", "panel", "raised")]
    pairs += [("page", paper) for paper in ("accent", "more", "less")] + [("warn", "warn-page")]
    for ink, paper in pairs:
        dark, bright = sorted(relative_luminance(colours[name]) for name in (ink, paper))
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)


def test_licences_of_what_is_bundled_lie_beside_it(http):
    text = http.get("/explorer/vendor/LICENSES.txt").text
    for name in ("regl-scatterplot", "uplot", "regl ", "gl-matrix", "kdbush"):
        assert f"==== {name}" in text
    assert text.count("Permission") >= 10
