"""Reads a multipart/form-data body as a stream, with limits that hold while it is read.

It knows parts, sizes and names, not what they mean. Large files go to unnamed temporary files,
so that memory stays flat; what is over a limit is refused before the rest has come in.
"""

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Final, Self

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.core.errors import Busy, FieldError, InvalidField, MalformedBody, TooLarge
from service.submission.room import BUSY_SECONDS

if TYPE_CHECKING:
    # It exists for type checkers alone.
    from python_multipart.multipart import MultipartCallbacks

IN_MEMORY_BYTES: Final = 512 * 1024
MAX_TEXT_BYTES: Final = 32 * 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """Which parts a form may have and how large they may be."""

    texts: frozenset[str]
    files: Mapping[str, int]
    """Names of file fields and how many of each are allowed."""
    max_body_bytes: int
    max_file_bytes: int


@dataclass(frozen=True, slots=True)
class Upload:
    """One file as it came in. Its name and type are the client's word and were not kept."""

    field: str
    content: IO[bytes]
    size_bytes: int
    sha256: str


@dataclass(slots=True)
class Form:
    """A body that was read whole. Leave the context to release its files."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[Upload]] = field(default_factory=dict)
    size_bytes: int = 0
    _held: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()


async def read_form(content_type: str, body: AsyncIterator[bytes], shape: Shape) -> Form:
    """Read a body.

    Raises `MalformedBody` (not multipart, cut off), `TooLarge`, `Busy` where no file can be
    written, or `InvalidField` for a field that is unknown, comes too often or is not UTF-8.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise MalformedBody("The body must be multipart/form-data; see /docs")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise MalformedBody("Content-Type names no boundary")
    form = Form()
    parts = _Parts(form, shape)
    with ExitStack() as undo:
        undo.push(form.__exit__)
        try:
            parser = MultipartParser(boundary, parts.callbacks())
            async for chunk in body:
                form.size_bytes += len(chunk)
                if form.size_bytes > shape.max_body_bytes:
                    raise TooLarge(f"The body is larger than {shape.max_body_bytes} bytes")
                if chunk:
                    parser.write(chunk)
        except OSError:  # of a temporary file
            raise Busy(
                "There is no room for more uploads", retry_after_seconds=BUSY_SECONDS
            ) from None
        except FormParserError:
            raise MalformedBody("The body is not well-formed multipart/form-data") from None
        if not parts.complete:
            raise MalformedBody("The body ends before its closing boundary")
        undo.pop_all()
    return form


class _Parts:
    """Takes the parser's callbacks and fills a form part by part."""

    def __init__(self, form: Form, shape: Shape) -> None:
        self._form = form
        self._shape = shape
        self._headers: dict[bytes, bytes] = {}
        self._header = bytearray()
        self._value = bytearray()
        self._name = ""
        self._text = bytearray()
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._size = 0
        self.complete = False

    def callbacks(self) -> "MultipartCallbacks":
        """What `MultipartParser` calls, by its names."""
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _on_part_begin(self) -> None:
        self._headers = {}
        self._size = 0

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"").decode("latin-1")
        kind, options = parse_options_header(disposition)
        if kind != b"form-data" or b"name" not in options:
            raise MalformedBody("A part of the body has no Content-Disposition with a name")
        try:
            self._name = options[b"name"].decode()
        except UnicodeDecodeError:
            raise MalformedBody("A part of the body has a name that is not UTF-8") from None
        self._admit(self._name)

    def _admit(self, name: str) -> None:
        """Decide by the name alone whether a part may come and what it is."""
        if name in self._shape.files:
            allowed = self._shape.files[name]
            uploads = self._form.files.setdefault(name, [])
            if len(uploads) >= allowed:
                raise _wrong(name, f"at most {allowed} may be sent")
            spool = SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115 - the form holds it
            self._file = self._form._held.enter_context(spool)  # noqa: SLF001 - same noun
            self._digest = hashlib.sha256()
        elif name not in self._shape.texts:
            raise _wrong(name[:100], "unknown field")
        elif name in self._form.texts:
            raise _wrong(name, "was sent more than once")
        else:
            self._file = None
            self._text.clear()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._file is None:
            if self._size > MAX_TEXT_BYTES:
                raise TooLarge(f"{self._name} is larger than {MAX_TEXT_BYTES} bytes")
            self._text += data[start:end]
            return
        if self._size > self._shape.max_file_bytes:
            raise TooLarge(f"{self._name} is larger than {self._shape.max_file_bytes} bytes")
        piece = data[start:end]
        self._digest.update(piece)
        self._file.write(piece)

    def _on_part_end(self) -> None:
        if self._file is None:
            try:
                self._form.texts[self._name] = self._text.decode()
            except UnicodeDecodeError:
                raise _wrong(self._name, "is not UTF-8") from None
            return
        self._file.seek(0)
        self._form.files[self._name].append(
            Upload(self._name, self._file, self._size, self._digest.hexdigest())
        )

    def _on_end(self) -> None:
        self.complete = True


def _wrong(name: str, message: str) -> InvalidField:
    return InvalidField(f"{name}: {message}", errors=[FieldError(name, message)])
