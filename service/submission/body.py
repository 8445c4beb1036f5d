"""Receives a request body as a stream, within limits on its size and duration."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from anyio import to_thread
from python_multipart.multipart import parse_options_header

from service.core.errors import Busy, MalformedBody, TooLarge, UnsupportedMedia
from service.core.schema import Declaration
from service.submission.form import FieldReader, FileParser, Form, FormParser
from service.submission.json_body import JsonParser

BUSY_SECONDS: Final = 5
"""After so long a refused body may be sent again."""

Parser = FormParser | JsonParser | FileParser
Counted = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]
"""A stream of chunks that are counted as they pass."""


class BodyBudget:
    """Limits how many bytes of request bodies are held at once, in memory and on disk."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._bodies: dict[str, int] = {}
        """How many bodies of each owner are being received."""
        self._bytes: Counter[str] = Counter()

    @contextmanager
    def count(self, owner: str) -> Iterator[Counted]:
        """Give what counts one body; its bytes are released at the end of the context.

        The counting stream raises `Busy` where the budget is used up: all of it, or the half of
        it that one owner may use with more than one body.
        """
        own_bytes = 0
        self._bodies[owner] = self._bodies.get(owner, 0) + 1

        async def counted(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            nonlocal own_bytes
            async for chunk in body:
                size = len(chunk)
                is_over_share = self._bytes[owner] + size > self._limit_bytes // 2
                if self._held_bytes + size > self._limit_bytes or (
                    self._bodies[owner] > 1 and is_over_share
                ):
                    raise Busy(retry_after_seconds=BUSY_SECONDS)
                self._held_bytes += size
                self._bytes[owner] += size
                own_bytes += len(chunk)
                yield chunk

        try:
            yield counted
        finally:
            self._held_bytes -= own_bytes
            self._bytes[owner] -= own_bytes
            self._bodies[owner] -= 1
            if not self._bodies[owner]:
                del self._bodies[owner], self._bytes[owner]


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How large a body and each of its files may be, and how long it may take."""

    max_body_bytes: int
    max_file_bytes: int
    timeout_seconds: float


async def read_body(
    declaration: Declaration,
    headers: Mapping[str, str],
    body: AsyncIterator[bytes],
    limits: BodyLimits,
    *,
    inside: str | None = None,
    raw: str | None = None,
) -> Form:
    """Read a body of multipart/form-data or JSON with the fields of `declaration`.

    `inside` names the object within a JSON body that has the fields, beside others that it has
    itself; `raw` the upload that a body is which is not JSON.

    Raises `MalformedBody` (of another type, incomplete, too slow), `TooLarge`, `Busy` where no
    file can be written, `UnsupportedMedia` for a body that is coded, or `InvalidField` for a field
    that is unknown, is sent too often or is not UTF-8.
    """
    content_type = headers.get("content-type", "")
    _check_length(headers, limits)
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedMedia(
            "A body with a Content-Encoding is not decoded; send it without",
            headers={"Accept-Encoding": "identity"},
        )
    fields = FieldReader(declaration, limits.max_file_bytes)
    kind, _ = parse_options_header(content_type)
    parser: Parser
    if kind == b"application/json":
        parser = JsonParser(fields, inside=inside)
    elif raw is not None:
        parser = FileParser(fields, raw)
    elif kind == b"multipart/form-data":
        parser = FormParser(content_type, fields)
    else:
        raise MalformedBody
    form = Form(declaration, is_json=not isinstance(parser, FormParser))
    with ExitStack() as undo:
        undo.push(form.__exit__)
        undo.callback(fields.close)
        try:
            async with asyncio.timeout(limits.timeout_seconds):
                await _receive(form, parser, fields, body, limits.max_body_bytes)
        except TimeoutError:
            seconds = limits.timeout_seconds
            raise MalformedBody(f"The body was not received within {seconds:g} seconds") from None
        except OSError:  # of a temporary file
            raise Busy(
                "There is no disk space for more uploads", retry_after_seconds=BUSY_SECONDS
            ) from None
        undo.pop_all()
    return form


def _check_length(headers: Mapping[str, str], limits: BodyLimits) -> None:
    """Refuse by its announced length what would be too large."""
    content_length = headers.get("content-length", "")
    if content_length.isdigit() and int(content_length) > limits.max_body_bytes:
        raise TooLarge(what="The body", limit=limits.max_body_bytes)


async def _receive(
    form: Form,
    parser: Parser,
    fields: FieldReader,
    body: AsyncIterator[bytes],
    max_body_bytes: int,
) -> None:
    """Feed the body to the parser; files are written to disk by threads, in large pieces."""
    async for chunk in body:
        form.size_bytes += len(chunk)
        if form.size_bytes > max_body_bytes:
            raise TooLarge(what="The body", limit=max_body_bytes)
        if chunk:
            parser.write(chunk)
        for file in fields.files[-2:]:  # a chunk that ends one file may begin the next one
            if file.must_flush:
                await to_thread.run_sync(file.flush)
    form.values = parser.finish()
    for file in fields.files:
        form.files.setdefault(file.name, []).append(await file.finish(form))
