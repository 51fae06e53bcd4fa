"""What a report page is made of: its style, tables, and pictures inside the page, which opens anywhere."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from ..data.parquet_files import replacing

STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #888; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.lead, figcaption, small { color: var(--dim); }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; background: white; border-radius: 4px; }
pre { overflow-x: auto; padding: .8rem; border: 1px solid var(--line); border-radius: 4px; font-size: 13px; }
.tag { font-size: .75rem; border: 1px solid var(--line); border-radius: 1rem; padding: .1rem .6rem; vertical-align: middle; }
.scroll { overflow-x: auto; } .texts td { text-align: left; vertical-align: top; }
.numbers { font-size: 14px; } .numbers td { white-space: nowrap; }
"""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table; its `kind` is `texts` (lines may break), `numbers` (they do not) or neither."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f"<div class='scroll'><table class='{kind}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure(png: bytes, caption: str) -> str:
    """A picture inside the page."""
    data = base64.b64encode(png).decode()
    text = html.escape(caption)
    return f"<figure><img alt='{text}' src='data:image/png;base64,{data}'><figcaption>{text}</figcaption></figure>"


def write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write the page, whole or not at all."""
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    with replacing(path) as stream:
        stream.write(page.encode())
