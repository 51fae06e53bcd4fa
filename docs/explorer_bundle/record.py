"""Writes draw_commands.json, which build.mjs needs: `python record.py URL`, in the folder of the build.

Drives the page of a running server in Chromium, with the bundle that lists what regl compiles.
"""

import json
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
KEYS = "ttcvvvcpp"
"""What makes the map draw itself anew, in all the ways it has."""


def record(url: str, bundle: Path, out: Path) -> int:
    """Write the draw commands of the page at `url` to `out`; returns how many there are."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--use-angle=swiftshader", "--no-sandbox"])
        # The policy of the page would forbid what is recorded here.
        page = browser.new_context(bypass_csp=True).new_page()
        page.route("**/vendor/vendor.js", lambda route: route.fulfill(path=bundle, content_type="text/javascript"))
        page.goto(url)
        page.wait_for_selector("html[data-ready=true]")
        page.click("#any")
        page.wait_for_selector("#object:not([hidden])")
        for key in KEYS:
            page.keyboard.press(key)
            page.wait_for_timeout(1200)
        found = page.evaluate("[...window.reglSources.values()]")
        browser.close()
    out.write_text(json.dumps(sorted(found)), encoding="utf-8")
    return len(found)


if __name__ == "__main__":
    record(sys.argv[1], Path("vendor.recording.js"), Path("draw_commands.json"))
