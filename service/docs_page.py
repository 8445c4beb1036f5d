"""GET /docs/plain: the OpenAPI document as one page of HTML, without scripts or other hosts."""

import base64
import hashlib
from html import escape
from typing import Any, Final

_STYLE: Final = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code,pre{font-family:ui-monospace,monospace;background:#8882;border-radius:4px}
code{padding:0 .25em}pre{padding:.75em;overflow:auto}h2{margin-top:2.5rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;
padding:.3em .6em;border-bottom:1px solid #8884}
"""

POLICY: Final = (
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    + "'"
)
"""Content-Security-Policy under which the page's own style is allowed and nothing else."""


def render(document: dict[str, Any], guide: str) -> str:
    """The page for an OpenAPI document, with a guide in Markdown (headings, paragraphs, code)."""
    info = document["info"]
    parts = [
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        *(f"<p>{_text(paragraph)}</p>" for paragraph in info["description"].split("\n\n")),
        '<p>The whole contract: <a href="../openapi.json">openapi.json</a>.</p>',
        '<p>With requests to try: <a href="../docs">the console</a>.</p>',
        *_guide(guide),
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += _operation(document, method, path, operation)
    title = escape(info["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>"
    )


def _guide(text: str) -> list[str]:
    """Markdown as HTML: what stands between two fences is code as it is."""
    parts = []
    for number, block in enumerate(text.split("```\n")):
        if number % 2:
            parts.append(f"<pre>{escape(block)}</pre>")
            continue
        for paragraph in filter(None, map(str.strip, block.split("\n\n"))):
            heading = paragraph.removeprefix("## ")
            tag = "p" if heading == paragraph else "h2"
            parts.append(f"<{tag}>{_text(heading)}</{tag}>")
    return parts


def _curl(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    """The operation as a command; `{id}` and the like are to be filled in."""
    words = ["curl -sS --fail-with-body"]
    if method != "get":
        words.append(f"-X {method.upper()}")
    words.append(f"'http://127.0.0.1:8000{path}'")
    if "security" in operation:
        words.append('-H "Authorization: Bearer $IMAGEPROMPT_KEY"')
    for content in operation.get("requestBody", {}).get("content", {}).values():
        form = _resolved(document, content["schema"])
        words += [f"-F {name}=@FILE" for name in form.get("required", ())]
    return f"<pre>{escape(' '.join(words))}</pre>"


def _operation(
    document: dict[str, Any], method: str, path: str, operation: dict[str, Any]
) -> list[str]:
    parts = [
        f"<h2><code>{method.upper()} {escape(path)}</code></h2>",
        f"<p>{_text(operation.get('description', ''))}</p>",
        _curl(document, method, path, operation),
    ]
    rows = [
        (
            f"{parameter['name']} ({parameter['in']})",
            _schema(document, parameter["schema"]),
            parameter.get("description", ""),
        )
        for parameter in operation.get("parameters", [])
    ]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        form = _resolved(document, content["schema"])
        rows += [
            (name, _schema(document, field), field.get("description", ""))
            for name, field in form["properties"].items()
        ]
    parts.append(_table(rows))
    answers = [
        (status, ", ".join(answer.get("content", {})), answer.get("description", ""))
        for status, answer in sorted(operation["responses"].items())
    ]
    parts.append(_table(answers))
    return parts


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    return dict(document["components"]["schemas"][reference.rpartition("/")[2]])


def _schema(document: dict[str, Any], schema: dict[str, Any]) -> str:
    """A field's type, range and default in a few words."""
    found = _resolved(document, schema)
    choices = [one for one in found.get("anyOf", ()) if one.get("type") != "null"]
    found = choices[0] if choices else found
    kind = " | ".join(map(str, found.get("enum", ()))) or str(found.get("type", ""))
    if found.get("format") == "binary" or found.get("items", {}).get("format") == "binary":
        kind = "file"
    low, high = found.get("minimum"), found.get("maximum")
    span = "" if low is None and high is None else f" {low}..{'' if high is None else high}"
    default = found.get("default", schema.get("default"))
    return f"{kind}{span}" + ("" if default in (None, "") else f", default {default}")


def _table(rows: list[tuple[str, str, str]]) -> str:
    body = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}</td><td>{_text(text)}</td></tr>"
        for name, kind, text in rows
    )
    return f"<table>{body}</table>" if rows else ""


def _text(text: str) -> str:
    """Escaped, with `code` marked up."""
    pieces = escape(text).split("`")
    return "".join(
        f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces)
    )
