"""Reads JSON bodies piece by piece: `data:` URIs are decoded into files while they are received.

Everything else of the body is small and is kept as text, with a marker in place of each file. So
memory stays flat, and a file is limited by its own size, as in a multipart form.
"""

import binascii
import json
import re
import secrets
from typing import Any, Final

from service.core.errors import FieldError, InvalidField, MalformedBody, TooLarge
from service.core.schema import take_alias
from service.submission.form import LINK_PREFIXES, MAX_TEXT_BYTES, FieldReader, FileSink

MAX_REST_BYTES: Final = 8 * MAX_TEXT_BYTES
"""Of all that is no file."""
MAX_STEPS: Final = 10_000
"""Of the parser: a string takes three, a comma or a bracket one."""
MAX_NESTING: Final = 64
"""Of arrays and objects; no field has as many."""
MAX_URI_HEAD_BYTES: Final = 256
"""Of a `data:` URI up to its comma (RFC 2397)."""

_URI_HEAD: Final = re.compile(rb"data:[^,\"\\]*(?:\\/[^,\"\\]*)?;base64,", re.IGNORECASE)
_OTHER_URI: Final = re.compile(r"data:[\w.+-]+/[\w.+-]+[;,]", re.IGNORECASE)
_PICTURE_STARTS: Final = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")
_HEAD_DIGITS: Final = 32
"""In base64, of what tells a picture from a text."""
_INSIDE: Final = re.compile(rb"(?:[^\"\\]++|\\.)*+", re.DOTALL)
_STRING: Final = re.compile(rb"\"" + _INSIDE.pattern + rb"\"", re.DOTALL)
_OUTSIDE: Final = re.compile(rb"[\"{}\[\]:,]")
_MALFORMED: Final = "The body is not well-formed JSON"
_NESTED: Final = f"The body has arrays or objects more than {MAX_NESTING} deep"
_NOT_UNICODE: Final = "The body holds text that is not valid Unicode: half a surrogate pair"


class JsonParser:
    """Parses one JSON object: its values, and files of a `FieldReader`.

    With `inside`, the fields may also be in an object of that name within it.
    """

    def __init__(self, fields: FieldReader, *, inside: str | None = None) -> None:
        self._fields = fields
        self._inside = inside
        self._deepest = 1 if inside is None else 2
        """How deep in the body the names of fields are."""
        self._marker = f"file:{secrets.token_hex(16)}:"
        self._rest = bytearray()
        self._unread = bytearray()
        self._state = self._outside
        self._open = bytearray()
        """The brackets that are open."""
        self._string_at = 0
        """Where the last string begins in `_rest`."""
        self._key = ""
        self._is_key = True
        self._sink: FileSink | None = None
        self._digits = bytearray()
        self._steps = 0

    def write(self, data: bytes) -> None:
        """Parse a piece. Raises `MalformedBody`, `TooLarge` or `InvalidField`."""
        self._unread += data
        while self._unread and self._state():
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise MalformedBody("The body has far more values than there are fields")
        if len(self._rest) > MAX_REST_BYTES:
            raise TooLarge(what="The body without its files", limit=MAX_REST_BYTES)

    def finish(self) -> dict[str, Any]:
        """The values of a body that has ended, without its files. Raises as `write`."""
        content = parse_json_text(self._rest + self._unread)
        if not isinstance(content, dict):
            raise MalformedBody("The body must be one JSON object")
        if self._inside is not None:
            inner = content.pop(self._inside, None)
            content = self._joined(content, {} if inner is None else inner)
        values: dict[str, Any] = {}
        files: list[FileSink] = []
        texts: list[tuple[str, str, Any]] = []
        for name, value in content.items():
            if not self._fields.is_file(name):
                values[name] = value
            elif text := self._text_of(name, value):
                texts.append((text, name, value))
            elif value is not None:
                listed = value if isinstance(value, list) else [value]
                files += [self._file_of(name, one) for one in listed]
        for text, name, value in texts:
            take_alias(values, text, name, value)
        self._fields.files[:] = files
        return values

    def _joined(self, outer: dict[str, Any], inner: object) -> dict[str, Any]:
        if not isinstance(inner, dict):
            raise InvalidField.of(FieldError(str(self._inside), "must be an object"))
        if twice := sorted(outer.keys() & inner.keys()):
            raise InvalidField.of(FieldError(twice[0][:100], "was sent more than once"))
        return outer | inner

    def _text_of(self, name: str, value: object) -> str | None:
        """The parameter that is meant where a value is a text and no file."""
        text = self._fields.text_of(name)
        if text is None or value is None:
            return None
        if not isinstance(value, str) or _OTHER_URI.match(value):
            message = f"must be a {text}, or a picture in base64"
            raise InvalidField.of(FieldError(name, message))
        return None if value.startswith(self._marker) else text

    def _file_of(self, name: str, value: object) -> FileSink:
        """The file behind a value, or the URL of one."""
        text = value if isinstance(value, str) else ""
        if text.startswith(self._marker):
            return self._fields.files[int(text.removeprefix(self._marker))]
        link = text.encode(errors="replace")
        if link.startswith(LINK_PREFIXES):
            file = self._fields.open_file(name)
            file.write(link)
            file.is_link = True
            return file
        message = "must be a data: URI with base64 content or a URL, or a list of them"
        raise InvalidField.of(FieldError(name, message))

    def _take(self, count: int) -> bytes:
        taken = bytes(self._unread[:count])
        del self._unread[:count]
        return taken

    def _outside(self) -> bool:
        """Between strings: copy up to the next one, and see how deep it is nested."""
        found = _OUTSIDE.search(self._unread)
        if found is None:
            self._rest += self._take(len(self._unread))
            return False
        self._rest += self._take(found.end())
        sign = self._rest[-1:]
        if sign == b'"':
            self._string_at = len(self._rest) - 1
            self._state = self._beginning
        elif sign in b"{[":
            self._open += sign
            self._is_key = sign == b"{"
        elif sign in b"}]":
            del self._open[-1:]
        elif sign == b":":
            self._is_key = False
            if len(self._open) <= self._deepest:
                self._key = self._last_string()
        else:
            self._is_key = self._open.endswith(b"{")
        return True

    def _last_string(self) -> str:
        found = _STRING.match(self._rest[self._string_at :])
        self._string_at = len(self._rest)  # each is a name once
        return str(parse_json_text(found[0])) if found else ""

    def _beginning(self) -> bool:
        """At the first bytes of a string: decide whether it is a file."""
        head = _URI_HEAD.match(self._unread)
        if head is not None and not self._is_key:
            if not self._fields.is_file(self._key):
                raise InvalidField.of(FieldError(self._key, "must not be a file"))
            self._take(head.end())
            self._open_file()
            return True
        start = bytes(self._unread[:5]).lower()
        may_be_head = start == b"data:"[: len(start)] and b"," not in self._unread
        if may_be_head and len(self._unread) < MAX_URI_HEAD_BYTES and b'"' not in self._unread:
            return False  # wait for more
        self._state = self._text
        if not self._is_key and self._fields.text_of(self._key) is not None:
            digits, ended, _ = bytes(self._unread[: 2 * _HEAD_DIGITS]).partition(b'"')
            if not ended and len(digits) < 2 * _HEAD_DIGITS:
                self._state = self._beginning
                return False  # wait for more
            if _begins_a_picture(digits):
                self._open_file()
        return True

    def _open_file(self) -> None:
        """Decode what follows; a marker stands for it."""
        self._sink = self._fields.open_file(self._key)
        self._rest += f"{self._marker}{len(self._fields.files) - 1}".encode()
        self._state = self._file

    def _text(self) -> bool:
        """Inside any other string: copy up to its end."""
        found = _INSIDE.match(self._unread)  # an escape is copied whole
        self._rest += self._take(found.end() if found else 0)
        if not self._unread.startswith(b'"'):
            return False
        self._rest += self._take(1)
        self._state = self._outside
        return True

    def _file(self) -> bool:
        """Inside a file: decode up to its end. Encoders may write a slash as two characters."""
        end = self._unread.find(b'"')
        self._digits += self._take(len(self._unread) if end < 0 else end)
        split = end < 0 and self._digits.endswith(b"\\")  # its second character is yet to come
        self._digits = self._digits.replace(b"\\/", b"/")
        if end < 0:
            self._decode(len(self._digits) // 4 * 4 - 4 - 4 * split)  # the last may be padding
            return False
        self._digits += b"=" * (-len(self._digits) % 4)
        self._decode(len(self._digits))
        self._rest += self._take(1)
        self._state = self._outside
        return True

    def _decode(self, count: int) -> None:
        assert self._sink is not None
        if count <= 0:
            return
        try:
            data = binascii.a2b_base64(self._digits[:count], strict_mode=True)
        except binascii.Error:
            self._refuse()
        del self._digits[:count]
        self._sink.write(data)

    def _refuse(self) -> None:
        raise InvalidField.of(FieldError(self._key[:100], "is not valid base64"))


def _begins_a_picture(digits: bytes) -> bool:
    """Whether digits of base64 are the first ones of a picture."""
    digits = digits.replace(b"\\/", b"/")[:_HEAD_DIGITS]
    try:
        head = binascii.a2b_base64(digits[: len(digits) // 4 * 4], strict_mode=True)
    except binascii.Error:
        return False
    return head.startswith(_PICTURE_STARTS) or head[4:8] == b"ftyp"


def parse_json_text(data: bytes | bytearray) -> Any:
    """The value of a JSON text. Raises `MalformedBody`, or `InvalidField` for a name sent twice.

    Strings have whole characters only, so that what quotes or stores them can write them as UTF-8.
    """
    try:
        text = data.decode()
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if b"\\u" in data:
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise MalformedBody(_NOT_UNICODE) from None
    except RecursionError:
        raise MalformedBody(_NESTED) from None
    except ValueError:
        raise MalformedBody(_MALFORMED) from None
    if _is_deeper(content, MAX_NESTING):
        raise MalformedBody(_NESTED)
    return content


def _is_deeper(content: Any, most: int) -> bool:
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(most + 1):
        groups = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for group in groups for one in group if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        name.encode()
        if name in found:
            raise InvalidField.of(FieldError(name[:100], "was sent more than once"))
        found[name] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(name)
