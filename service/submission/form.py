"""Reads multipart/form-data bodies piece by piece, and holds what was read of any body.

Large files go to unnamed temporary files, so that memory stays flat; what is over a limit is
refused before the rest has been received.
"""

import hashlib
import io
from contextlib import ExitStack
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Final, Self

from anyio import to_thread
from pydantic import BaseModel
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.core.errors import FieldError, InvalidField, MalformedBody, TooLarge
from service.core.schema import Declaration, Files, marked, parameters, parse_form, parse_json

if TYPE_CHECKING:
    # It exists for type checkers alone.
    from python_multipart.multipart import MultipartCallbacks

IN_MEMORY_BYTES: Final = 512 * 1024
"""Of one file; what is larger is written to disk in pieces of this size."""
MAX_TEXT_BYTES: Final = 32 * 1024
MAX_FILENAME: Final = 255
LINK_PREFIXES: Final = (b"https://", b"http://")
"""What a file field begins with that has the file's URL instead of the file."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One file as it was received. Its type is the client's claim and was not kept."""

    field: str
    content: IO[bytes]
    size_bytes: int
    sha256: str
    is_blank: bool = False
    """Empty and without a name: an HTML form sends this where no file was chosen."""
    filename: str = ""
    """As the client calls it."""
    is_link: bool = False
    """Whether the content is the URL of the file; `service/submission/links.py` fetches it."""


@dataclass(slots=True)
class Form:
    """A body that was read whole. Leave the context to release its files."""

    declaration: Declaration
    values: dict[str, Any] = field(default_factory=dict)
    """Texts of a multipart form, or values of a JSON object."""
    is_json: bool = False
    files: dict[str, list[Upload]] = field(default_factory=dict)
    size_bytes: int = 0
    webhook_events: tuple[str, ...] = ()
    """What webhooks tell of, where a facade offers more than the end."""
    opened: ExitStack = field(default_factory=ExitStack)
    """What closes the files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def parse(self) -> BaseModel:
        """The parameters, each checked by itself. Raises `InvalidField`.

        Fields that an HTML form sent empty are dropped.
        """
        if self.is_json:
            return parse_json(self.declaration, self.values)
        for name, uploads in list(self.files.items()):
            self.files[name] = [upload for upload in uploads if not upload.is_blank]
            if not self.files[name]:
                del self.files[name]
        return parse_form(
            self.declaration, {name: value for name, value in self.values.items() if value != ""}
        )


class FileSink:
    """Receives one file: in memory while it is small, then on disk."""

    def __init__(self, name: str, max_bytes: int) -> None:
        self.name = name
        self.size_bytes = 0
        self.is_blank = False
        self.filename = ""
        self.is_link = False
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._disk: IO[bytes] | None = None
        self._digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        """Take a piece. Raises `TooLarge`."""
        self.size_bytes += len(data)
        if self.size_bytes > self._max_bytes:
            raise TooLarge(what=self.name, limit=self._max_bytes)
        self._digest.update(data)
        self._buffer += data

    @property
    def must_flush(self) -> bool:
        """Whether so much has been received that it must be written to disk."""
        return len(self._buffer) > IN_MEMORY_BYTES

    def flush(self) -> None:
        """Write what has been received to disk. Blocks. Raises `OSError`."""
        if self._disk is None:
            self._disk = TemporaryFile()  # noqa: SIM115 - closed with the form
        self._disk.write(self._buffer)
        self._buffer.clear()

    def starts_with(self, prefixes: tuple[bytes, ...]) -> bool:
        """Whether a file that has not been flushed starts with one of these."""
        return self._disk is None and self._buffer.startswith(prefixes)

    async def finish(self, form: Form) -> Upload:
        """The whole file, which `form` closes."""
        if self._disk is not None or self.must_flush:
            await to_thread.run_sync(self.flush)
        if self._disk is not None:
            self._disk.seek(0)
        content = self._disk or io.BytesIO(self._buffer)
        form.opened.enter_context(content)
        return Upload(
            self.name,
            content,
            self.size_bytes,
            self._digest.hexdigest(),
            is_blank=self.is_blank,
            filename=self.filename,
            is_link=self.is_link,
        )

    def close(self) -> None:
        """Release a file that was not finished."""
        if self._disk is not None:
            self._disk.close()


class FieldReader:
    """Which fields a body may have, and the files that it has brought so far."""

    def __init__(self, declaration: Declaration, max_file_bytes: int) -> None:
        self.files: list[FileSink] = []
        """In order; the last one may not have ended."""
        self._limits = marked(declaration, Files)
        self._texts = frozenset(parameters(declaration))
        self._max_file_bytes = max_file_bytes

    def named(self, name: str) -> str:
        """The field of a form's name: some frameworks write `image[]` for `image`."""
        base = name.removesuffix("[]")
        return base if base in self._limits else name

    def is_file(self, name: str) -> bool:
        """Whether a field is an upload. Raises `InvalidField` where it is unknown."""
        if name not in self._limits and name not in self._texts:
            raise InvalidField.of(FieldError(name[:100], "unknown field"))
        return name in self._limits

    def open_file(self, name: str) -> FileSink:
        """Begin one more file of an upload. Raises `InvalidField` where that is one too many."""
        most = self._limits[name].at_most
        if sum(sink.name == name for sink in self.files) >= most:
            raise InvalidField.of(FieldError(name, f"at most {most} may be sent"))
        self.files.append(FileSink(name, self._max_file_bytes))
        return self.files[-1]

    def close(self) -> None:
        """Release all files of a body that was refused."""
        for file in self.files:
            file.close()


class FormParser:
    """Parses multipart/form-data: fills in texts, and files of a `FieldReader`."""

    def __init__(self, content_type: str, fields: FieldReader) -> None:
        """Raise `MalformedBody` where the content type names no boundary."""
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise MalformedBody("Content-Type names no boundary")
        self._fields = fields
        self._texts: dict[str, str] = {}
        self._headers: dict[bytes, bytes] = {}
        self._header = bytearray()
        self._value = bytearray()
        self._name = ""
        self._text = bytearray()
        self._file: FileSink | None = None
        self._complete = False
        try:
            self._parser = MultipartParser(boundary, self._callbacks())
        except FormParserError:
            raise MalformedBody("Content-Type names a boundary that is too long") from None

    def write(self, data: bytes) -> None:
        """Parse a piece. Raises `MalformedBody`, `TooLarge` or `InvalidField`."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise MalformedBody("The body is not well-formed multipart/form-data") from None

    def finish(self) -> dict[str, Any]:
        """The texts of a body that has ended. Raises `MalformedBody` for an incomplete one."""
        if not self._complete:
            raise MalformedBody("The body ends before its closing boundary")
        return self._texts

    def _callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

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
            self._name = self._fields.named(options[b"name"].decode())
        except UnicodeDecodeError:
            raise MalformedBody("A part of the body has a name that is not UTF-8") from None
        self._file = None
        if self._fields.is_file(self._name):
            self._file = self._fields.open_file(self._name)
            filename = options.get(b"filename", b"").decode("utf-8", errors="replace")
            self._file.filename = filename[:MAX_FILENAME]
        elif self._name in self._texts:
            raise InvalidField.of(FieldError(self._name, "was sent more than once"))
        self._text.clear()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > MAX_TEXT_BYTES:
            raise TooLarge(what=self._name, limit=MAX_TEXT_BYTES)

    def _on_part_end(self) -> None:
        if self._file is not None:
            has_name = bool(self._file.filename)
            self._file.is_blank = not self._file.size_bytes and not has_name
            self._file.is_link = self._file.starts_with(LINK_PREFIXES) and not has_name
        else:
            try:
                self._texts[self._name] = self._text.decode()
            except UnicodeDecodeError:
                raise InvalidField.of(FieldError(self._name, "is not UTF-8")) from None

    def _on_end(self) -> None:
        self._complete = True
