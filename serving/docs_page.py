"""The page at /docs: the OpenAPI document as HTML, without a script, a font or an image from anywhere.

Everything on it comes from the document, so that the two cannot differ. Every text is escaped.
"""

import html
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

JSON = "application/json"
PROBLEM = "application/problem+json"
FORM = "multipart/form-data"
KEY_VARIABLE = "ARMILLARY_API_KEY"
"""The shell variable that the commands of a server with a key read."""

SECTIONS = {
    "embeddings": "Embeddings",
    "search": "Search and prediction",
    "objects": "Pictures and spectra",
    "about": "About the server",
}
"""Headings of the document's tags, in the order of the page; other tags follow under their own names."""

ONE_LINE = 80
"""Characters of JSON that are shown on one line."""

Document = Mapping[str, Any]


def docs_page(document: Document, url: str, needs_key: bool = False) -> str:
    """The whole page. `url` is the address at which the server was asked, for the commands."""
    operations = list(_operations(document))
    tags = [*SECTIONS, *sorted({tag for *_, tag in operations} - SECTIONS.keys())]
    sections, links = [], []
    for tag in tags:
        own = [(method, path, operation) for method, path, operation, its in operations if its == tag]
        if own:
            title = html.escape(SECTIONS.get(tag, tag))
            sections.append(f"<h2>{title}</h2>")
            sections += [_operation(document, *entry, url, needs_key) for entry in own]
            links.append(f"<h3>{title}</h3><ul>{''.join(_link(method, path) for method, path, _ in own)}</ul>")
    schemas = document.get("components", {}).get("schemas", {})
    sections.append('<h2 id="bodies">Bodies</h2>')
    sections += [_schema_section(document, name, schemas[name]) for name in sorted(schemas)]
    info = document["info"]
    key = (
        "<p>This server asks for a key: every request but those for <code>/livez</code>, <code>/readyz</code> and this "
        f"page bears <code>Authorization: Bearer KEY</code>. The commands take it from <code>${KEY_VARIABLE}</code>."
        "</p>"
        if needs_key
        else ""
    )
    title = html.escape(info["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: HTTP API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body><nav><p class=name>{title}</p>{''.join(links)}"
        '<h3><a href="#bodies">Bodies</a></h3></nav><main>'
        f"<h1>{title}: HTTP API {html.escape(info['version'])}</h1>{_prose(info.get('summary', ''))}{key}"
        '<p>Errors are problem documents (RFC 9457). The same as data: <a href="/openapi.json">/openapi.json</a>.</p>'
        f"{''.join(sections)}</main></body></html>\n"
    )


def curl_commands(method: str, path: str, operation: Document, url: str, needs_key: bool = False) -> dict[str, str]:
    """A ready `curl` command for each example of a route, by the example's name; raw bodies by their media type."""
    shown = [p for p in operation.get("parameters", ()) if p.get("required") or p["schema"].get("x-shown")]
    values = {p["name"]: _example_of_parameter(p) for p in shown}
    filled = re.sub(r"\{(\w+)\}", lambda found: quote(values.pop(found[1], found[1]), safe=""), path)
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='/')}" for name, value in values.items())
    head = "curl -s" if method == "get" else f"curl -s -X {method.upper()}"
    key = f'\n  -H "Authorization: Bearer ${KEY_VARIABLE}"' if needs_key else ""
    content = operation.get("requestBody", {}).get("content", {})
    whole = shlex.quote(url + filled + ("?" + query if query else ""))
    if not content:
        return {"": _shell(f"{head} {whole}{key}")}
    commands = {}
    for media_type, body in content.items():
        kind = f"\n  -H {shlex.quote('Content-Type: ' + media_type)}"
        if media_type == JSON:
            for name, example in body.get("examples", {}).items():
                text = _pretty(example["value"])
                commands[name] = f"{_shell(f'{head} {whole}{key}{kind}')} \\\n  -d {shlex.quote(text)}"
        else:
            sent = body.get("x-example", {"file": "body.bin", "query": ""})
            place = shlex.quote(url + filled + ("?" + sent["query"] if sent["query"] else ""))
            if media_type == FORM:
                parts = ["file=@" + sent["file"], *filter(None, sent["query"].split("&"))]
                form = " ".join(f"-F {shlex.quote(part)}" for part in parts)
                commands[media_type] = f"{_shell(f'{head} {shlex.quote(url + filled)}{key}')} \\\n  {form}"
                continue
            file = shlex.quote("@" + sent["file"])
            commands[media_type] = _shell(f"{head} {place}{key}{kind}\n  --data-binary {file}")
    return commands


def _operations(document: Document) -> Iterator[tuple[str, str, Document, str]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation, next(iter(operation.get("tags", ())), "other")


def _operation(document: Document, method: str, path: str, operation: Document, url: str, needs_key: bool) -> str:
    parts = [
        f'<section id="{_anchor(method, path)}"><h3>{_name(method, path)}</h3>'
        f"<p class=summary>{html.escape(operation.get('summary', ''))}</p>{_prose(operation.get('description', ''))}"
    ]
    if operation.get("parameters"):
        rows = [
            (_code(p["name"]), _type(p["schema"]), html.escape(_of_parameter(p)), _prose(p.get("description", "")))
            for p in operation["parameters"]
        ]
        parts.append(_table(("Parameter", "Type", "", ""), rows))
    body = operation.get("requestBody", {}).get("content", {}).get(JSON, {}).get("schema", {})
    if body:
        parts.append(f"<p>Body: {_type(body)}.</p>{_fields(document, body)}")
    for name, command in curl_commands(method, path, operation, url, needs_key).items():
        parts.append(f"<h4>Request{': ' + html.escape(name) if name else ''}</h4><pre>{html.escape(command)}</pre>")
    errors = []
    for status, answer in operation["responses"].items():
        content = answer.get("content", {})
        if PROBLEM in content:
            errors.append((_code(status), _prose(answer.get("description", ""))))
            continue
        types = ", ".join(_code(media_type) for media_type in content)
        schema = _type(content.get(JSON, {}).get("schema", {}))
        parts.append(f"<h4>Answer {html.escape(status)}</h4><p>{types} {schema}</p>")
        if "example" in content.get(JSON, {}):
            parts.append(f"<pre>{html.escape(_pretty(content[JSON]['example']))}</pre>")
    if errors:
        parts.append("<h4>Errors</h4>" + _table(("Status", "Meaning"), errors))
    return "".join(parts) + "</section>"


def _schema_section(document: Document, name: str, schema: Document) -> str:
    described = _prose(schema.get("description", "")) + _fields(document, schema)
    return f'<section id="schema-{html.escape(name)}"><h3>{html.escape(name)}</h3>{described}</section>'


def _fields(document: Document, schema: Document) -> str:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    required = schema.get("required", ())
    rows = []
    for name, entry in schema.get("properties", {}).items():
        said = "needed" if name in required else _default(entry)
        rows.append((_code(name), _type(entry), html.escape(said), _prose(entry.get("description", ""))))
    return _table(("Field", "Type", "", ""), rows) if rows else ""


def _type(schema: Document) -> str:
    """A schema in a few words, as HTML."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{html.escape(name)}">{html.escape(name)}</a>'
    if "anyOf" in schema:
        parts = dict.fromkeys(_type(entry) for entry in schema["anyOf"] if entry.get("type") != "null")
        return " or ".join(parts)
    if "const" in schema or "enum" in schema:
        return " or ".join(_code(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        items = schema.get("items") or {}
        return f"array of {_type(items)}" if items else "array"
    if "contentEncoding" in schema:
        return html.escape(schema["contentEncoding"])
    return html.escape(str(schema.get("type", "")))


def _default(schema: Document) -> str:
    default = schema.get("default")
    return "" if default is None else f"default {json.dumps(default)}"


def _of_parameter(parameter: Document) -> str:
    if parameter["in"] == "path":
        return "in the path"
    return "needed" if parameter.get("required") else _default(parameter["schema"])


def _example_of_parameter(parameter: Document) -> str:
    examples = parameter["schema"].get("examples") or [parameter["name"].upper()]
    return str(examples[0])


def _shell(command: str) -> str:
    return command.replace("\n", " \\\n")


def _pretty(value: Any, indent: str = "") -> str:
    """JSON, with every part on one line that fits there."""
    text = json.dumps(value, ensure_ascii=False)
    if len(indent + text) < ONE_LINE or not isinstance(value, dict | list):
        return text
    deeper = indent + "  "
    if isinstance(value, dict):
        parts = [f"{json.dumps(name, ensure_ascii=False)}: {_pretty(part, deeper)}" for name, part in value.items()]
    else:
        parts = [_pretty(part, deeper) for part in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    lines = f",\n{deeper}".join(parts)
    return f"{opening}\n{deeper}{lines}\n{indent}{closing}"


def _prose(text: str) -> str:
    """Paragraphs, with `code` between backticks."""
    escaped = html.escape(text.strip())
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return "".join(f"<p>{paragraph.strip()}</p>" for paragraph in marked.split("\n\n") if paragraph.strip())


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _name(method: str, path: str) -> str:
    return f'<span class="method {html.escape(method)}">{html.escape(method.upper())}</span> {_code(path)}'


def _link(method: str, path: str) -> str:
    return f'<li><a href="#{_anchor(method, path)}">{_name(method, path)}</a></li>'


def _anchor(method: str, path: str) -> str:
    return html.escape(f"{method}-{re.sub(r'[^A-Za-z0-9]+', '-', path).strip('-')}")


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5a6675; --paper: #fff; --panel: #f4f6f9; --line: #dbe1e8;
  --link: #1d5fbf; --get: #14724a; --post: #8a4b08; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe5ec; --soft: #98a4b3; --paper: #12161c; --panel: #1b212a;
  --line: #303945; --link: #7db4ff; --get: #63cf9c; --post: #f0b168; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; display: grid; grid-template-columns: 19rem minmax(0, 1fr); color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
nav { position: sticky; top: 0; height: 100vh; overflow: auto; padding: 1.2rem 1rem; background: var(--panel);
  border-right: 1px solid var(--line); font-size: .82rem; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav li { margin: .3rem 0; overflow-wrap: anywhere; }
nav h3 { margin: 1.2rem 0 .3rem; font-size: .82rem; color: var(--soft); }
nav code { background: none; padding: 0; }
.name { font-size: 1.2rem; font-weight: 650; margin: 0; }
main { padding: 1.5rem clamp(1rem, 4vw, 3.5rem) 6rem; max-width: 66rem; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; }
h2 { margin: 3rem 0 0; font-size: 1.35rem; }
h3 { margin: 0 0 .4rem; font-size: 1.02rem; }
h4 { margin: 1.2rem 0 .35rem; font-size: .88rem; color: var(--soft); }
p { margin: .4rem 0; max-width: 46rem; }
section { padding: 1.4rem 0; border-bottom: 1px solid var(--line); }
.summary { font-weight: 600; }
.method { font: 700 .72rem/1 ui-monospace, monospace; color: var(--get); }
.method.post { color: var(--post); }
a { color: var(--link); text-decoration: none; }
a:hover, a:focus { text-decoration: underline; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .86em; }
code { background: var(--panel); border-radius: 3px; padding: .08em .3em; overflow-wrap: anywhere; }
pre { margin: 0; padding: .8rem 1rem; overflow: auto; background: var(--panel); border: 1px solid var(--line);
  border-radius: 6px; max-height: 26rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .88rem; width: 100%; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child code { white-space: nowrap; }
td:nth-child(3) { white-space: nowrap; color: var(--soft); }
td p { margin: 0; }
@media (max-width: 56rem) { body { display: block; } nav { position: static; height: auto; } }
"""
