"""The page at `/`, the API console at `/docs`, and `/docs/plain` without scripts.

The page's files have the digest of all of them in their path, so that browsers keep them for good
and ask for `/` alone again. They hold no request of a client and need no API key.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from html import escape
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.core.errors import NotFound
from service.core.params import GenerateRequest
from service.core.schema import sent_model
from service.core.settings import ROOT, Settings
from service.dependencies import UseSettings
from service.openapi import describe, form_schema
from service.responses import IMAGE_TYPES

STATIC: Final = Path(__file__).resolve().parents[1] / "static"
EXAMPLES: Final = ROOT / "examples"
"""Pictures that the page offers to try; an installation without them offers none."""
FORM: Final = "form.json"
"""What the page has to know of the service; made, not stored."""
MEDIA_TYPES: Final[Mapping[str, str]] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
"""Of what is served; licence texts beside the code are not."""
REVALIDATE: Final = "no-cache"
FOR_GOOD: Final = "public, max-age=31536000, immutable"
_METHODS: Final = ["GET", "HEAD"]
_NOTHING_ELSE: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "connect-src 'self'; script-src 'self'; "
)
PAGE_POLICY: Final = (
    _NOTHING_ELSE + "style-src 'self'; img-src 'self' blob:; require-trusted-types-for 'script'"
)
CONSOLE_POLICY: Final = (
    _NOTHING_ELSE + "style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; "
    "font-src 'self' data:; media-src blob:"
)
"""Scalar puts its styles into the page itself; scripts come from files alone here, too."""

page = APIRouter(include_in_schema=False)
"""The page: for clients."""
console = APIRouter(include_in_schema=False)
"""The API console: beside the OpenAPI document."""


@dataclass(frozen=True)
class StaticFile:
    """One file as it is sent; `packed` is its body in gzip, which may be all that is stored."""

    media_type: str
    plain: bytes | None
    packed: bytes | None

    @cached_property
    def etag(self) -> str:
        """A weak one, since both encodings share it (RFC 9110, section 8.8.1)."""
        return f'W/"{hashlib.sha256(self.plain or self.packed or b"").hexdigest()[:32]}"'

    def answer(self, request: Request, headers: Mapping[str, str]) -> Response:
        """The file, or 304 where the client has it."""
        shared = {"ETag": self.etag, "Vary": "Accept-Encoding", **headers}
        known = request.headers.get("if-none-match", "")
        if not {self.etag, "*"}.isdisjoint(tag.strip() for tag in known.split(",")):
            return Response(status_code=304, headers=shared)
        if self.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            shared["Content-Encoding"] = "gzip"
            return Response(self.packed, media_type=self.media_type, headers=shared)
        plain = gzip.decompress(self.packed or b"") if self.plain is None else self.plain
        return Response(plain, media_type=self.media_type, headers=shared)


def _of_bytes(name: str, body: bytes) -> StaticFile:
    media_type = MEDIA_TYPES[Path(name).suffix]
    packed = None if media_type == "image/png" else gzip.compress(body, mtime=0)
    return StaticFile(media_type, body, packed)


@dataclass(frozen=True)
class Site:
    """The page with all its files, by their names."""

    version: str
    index: StaticFile
    files: Mapping[str, StaticFile]


@cache
def _site(*, console_here: bool) -> Site:
    """Read once, when the first request comes."""
    bodies = dict(_page_files())
    known = form() | {"console": console_here}
    bodies[FORM] = json.dumps(known, separators=(",", ":")).encode()
    version = hashlib.sha256(
        b"".join(name.encode() + body for name, body in sorted(bodies.items()))
    ).hexdigest()[:16]
    index = bodies.pop("index.html").replace(b'"static/', f'"static/{version}/'.encode())
    return Site(
        version,
        _of_bytes("index.html", index),
        {name: _of_bytes(name, body) for name, body in bodies.items()},
    )


def _of(settings: Settings) -> Site:
    """The page as this process serves it: with a port for operators, the console is there."""
    return _site(console_here=settings.admin_port is None)


def _page_files() -> Iterator[tuple[str, bytes]]:
    root = STATIC / "page"
    for path in sorted(root.rglob("*")):
        if path.suffix in MEDIA_TYPES:
            yield path.relative_to(root).as_posix(), path.read_bytes()
    for path in sorted(EXAMPLES.glob("*.png")):
        yield f"examples/{path.name}", path.read_bytes()


def form() -> dict[str, Any]:
    """What POST /generate takes: its schema without references, and media types of pictures."""
    definitions = sent_model(GenerateRequest).model_json_schema().get("$defs", {})
    return {
        "schema": _inlined(form_schema(GenerateRequest), definitions),
        "accept": IMAGE_TYPES,
        "examples": [path.name for path in sorted(EXAMPLES.glob("*.png"))],
    }


def _inlined(node: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inlined(one, definitions) for one in node]
    if not isinstance(node, dict):
        return node
    found = {key: _inlined(value, definitions) for key, value in node.items() if key != "$ref"}
    if "$ref" in node:
        name = str(node["$ref"]).rpartition("/")[2]
        found = _inlined(definitions[name], definitions) | found
    return found


@page.api_route("/", methods=_METHODS)
async def index(request: Request, settings: UseSettings) -> Response:
    """The page."""
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": REVALIDATE}
    return _of(settings).index.answer(request, headers)


@page.api_route("/static/{version}/{name:path}", methods=_METHODS)
async def static_file(request: Request, settings: UseSettings, version: str, name: str) -> Response:
    """A file of the page; one of another version is not kept."""
    site = _of(settings)
    if name not in site.files:
        raise NotFound("There is no resource at this path")
    kept = FOR_GOOD if version == site.version else REVALIDATE
    return site.files[name].answer(request, {"Cache-Control": kept})


@cache
def _console_files() -> Mapping[str, StaticFile]:
    root = STATIC / "console"
    files = {
        path.name: _of_bytes(path.name, path.read_bytes())
        for path in root.iterdir()
        if path.suffix in MEDIA_TYPES
    }
    for path in root.glob("*.gz"):
        name = path.name.removesuffix(".gz")
        files[name] = StaticFile(MEDIA_TYPES[Path(name).suffix], None, path.read_bytes())
    return files


@console.api_route("/docs", methods=_METHODS)
async def docs(request: Request) -> Response:
    """The API console."""
    headers = {"Content-Security-Policy": CONSOLE_POLICY, "Cache-Control": REVALIDATE}
    return _console_files()["console.html"].answer(request, headers)


@cache
def _plain() -> StaticFile:
    guide = (STATIC / "console" / "guide.md").read_text(encoding="utf-8")
    return _of_bytes("plain.html", render_plain(describe(), guide).encode())


@console.api_route("/docs/plain", methods=_METHODS)
async def plain_docs(request: Request) -> Response:
    """The same as one page without scripts."""
    headers = {"Content-Security-Policy": PLAIN_POLICY, "Cache-Control": REVALIDATE}
    return _plain().answer(request, headers)


@console.api_route("/docs/{name}", methods=_METHODS)
async def console_file(request: Request, name: str) -> Response:
    """A file of the console."""
    if name not in _console_files():
        raise NotFound("There is no resource at this path")
    return _console_files()[name].answer(request, {"Cache-Control": REVALIDATE})


_PLAIN_STYLE: Final = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code,pre{font-family:ui-monospace,monospace;background:#8882;border-radius:4px}
code{padding:0 .25em}pre{padding:.75em;overflow:auto}h2{margin-top:2.5rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;
padding:.3em .6em;border-bottom:1px solid #8884}
"""

PLAIN_POLICY: Final = (
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(_PLAIN_STYLE.encode()).digest()).decode()
    + "'"
)
"""Content-Security-Policy under which the page's own style is allowed and nothing else."""


def render_plain(document: dict[str, Any], guide: str) -> str:
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
        f"<style>{_PLAIN_STYLE}</style><body>{''.join(parts)}</body></html>"
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
