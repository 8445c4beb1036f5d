"""HTTP/1.1 on one connection: uvicorn's httptools protocol, bounded where uvicorn is not.

What a client sends outside a request's body is bounded in bytes, in number and in time. The parser
is fed one request at a time, cut at the places where a message can end, so that a pipelined request
is not parsed before the one ahead of it is answered.
"""

import asyncio
import contextvars
import re
import select
from enum import Enum, auto
from typing import Any, Final

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.connections import Connections, HttpLimits
from service.core.settings import is_host
from service.problems import (
    FRAMING_TOO_LARGE,
    HEAD_TOO_LARGE,
    MALFORMED,
    TOO_MANY_CONNECTIONS,
    TOO_SLOW,
    UNKNOWN_CODING,
    WRONG_HOST,
    Refusal,
    RefusedError,
)

_END: Final = b"\r\n\r\n"
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
_CHUNKED_SLICE_BYTES: Final = 2**14
_PIPELINED_PAUSE_SECONDS: Final = 0.05
"""Before a request that was sent before the last one was answered, which few honest clients do."""
_DISCARD_PAUSE_SECONDS: Final = 0.02
"""Between two reads of what is dropped: up to 256 kB each, so 12 MB/s."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class _Phase(Enum):
    """What a connection is doing."""

    HEAD = auto()
    """Waiting for a request, or for the rest of its head."""
    BODY = auto()
    """A request's body comes in."""
    RESPONSE = auto()
    """The request is complete, its response is not."""
    DISCARD = auto()
    """The response is complete, the request's body is not."""


class HttpProtocol(HttpToolsProtocol):
    """One connection. An offer to upgrade is ignored, as RFC 9110 (7.8) allows."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: HttpLimits,
        open_connections: Connections["HttpProtocol"],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._open_connections = open_connections
        self._unparsed = bytearray()
        self._searched_bytes = 0
        self._in_body = False
        self._body_bytes_left: int | None = None
        """Of a body with a Content-Length; `None` where it is chunked."""
        self._last_bytes = b""
        self._is_pipeline_paused = False
        self._next_request: asyncio.TimerHandle | None = None
        self._body_bytes = 0
        self._framing_bytes = 0
        self._framing_bytes_since_data = 0
        self._trailer_fields = 0
        self._phase = _Phase.HEAD
        self._phase_seconds = 0.0
        self._phase_body_bytes = 0
        self._write_seconds = 0.0
        self._write_buffer_bytes = 0
        self._checked_at = self.loop.time()
        self._check_timer: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(  # type: ignore[override]  # as uvicorn's own
        self, transport: asyncio.Transport
    ) -> None:
        """Count the connection, or refuse it."""
        super().connection_made(transport)
        self._check_timer = self.loop.call_later(self._limits.check_seconds, self._check)
        if not self._open_connections.add(self, self.client[0] if self.client else ""):
            self._refuse(TOO_MANY_CONNECTIONS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release what the connection holds."""
        self._open_connections.remove(self)
        self._unparsed.clear()
        for timer in (self._check_timer, self._next_request):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def evict(self) -> None:
        """Close the connection, which waits for a request, in favour of a new one."""
        self.transport.abort()

    # What comes in

    def data_received(self, data: bytes) -> None:
        """Parse as far as the request at hand goes."""
        if self._phase is _Phase.DISCARD:
            self._pause_discarding()
        self._unset_keepalive_if_required()
        if not self._unparsed and self._in_body and len(data) <= (self._body_bytes_left or 0):
            self._feed(data)  # most of an upload: not copied
            return
        self._unparsed += data
        self._parse()

    def _pause_discarding(self) -> None:
        """Let other connections be read: libuv reads a full buffer 32 times in a turn, 8 MB."""
        if not self.transport.is_closing():
            self.transport.pause_reading()
            self.loop.call_later(_DISCARD_PAUSE_SECONDS, self._resume_reading)

    def _resume_reading(self) -> None:
        if not self.flow.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def _parse(self) -> None:
        while self._unparsed and not self.transport.is_closing():
            if self._in_body:
                size = self._body_piece_size()
                piece = bytes(self._unparsed[:size])
                del self._unparsed[:size]
                self._feed(piece)
            elif self._phase is _Phase.RESPONSE or self._next_request is not None:
                self._hold_pipelined()
                return
            elif not self._parse_head():
                return

    def _parse_head(self) -> bool:
        """Start a request whose head is complete. False where it is not."""
        try:
            head = self._take_head()
        except RefusedError as error:
            self._refuse(error.refusal)
            return False
        if head is None:
            return False
        self._feed(head)
        if self._phase is _Phase.HEAD:  # the parser waits for something else, as after HTTP/2's PRI
            self._refuse(MALFORMED)
        return True

    def _hold_pipelined(self) -> None:
        if len(self._unparsed) > self._limits.pipelined_bytes:
            self.flow.pause_reading()
            self._is_pipeline_paused = True
        if len(self._unparsed) > 16 * self._limits.pipelined_bytes:  # the application resumed it
            self.transport.abort()

    def _take_head(self) -> bytes | None:
        """Remove one complete head from what has come in. Raises `RefusedError`."""
        if self._unparsed[0] in b"\r\n":
            self._unparsed = self._unparsed.lstrip(b"\r\n")  # RFC 9112 2.2
            self._searched_bytes = 0
        end = self._unparsed.find(_END, max(0, self._searched_bytes - len(_END) + 1))
        size = end + len(_END) if end >= 0 else len(self._unparsed)
        if size > self._limits.head_bytes:
            raise RefusedError(HEAD_TOO_LARGE)
        if end < 0:
            self._searched_bytes = size
            if not _may_become_a_head(self._unparsed):
                raise RefusedError(MALFORMED)
            return None
        head = bytes(self._unparsed[:size])
        del self._unparsed[:size]
        self._searched_bytes = 0
        return _UPGRADE.sub(b"", head)

    def _body_piece_size(self) -> int:
        """How much can be parsed without going beyond a place where the message may end."""
        if self._body_bytes_left is not None:
            return min(self._body_bytes_left, len(self._unparsed))
        # A chunked message ends with an empty line, which may have begun in the piece before.
        before = self._last_bytes
        seam = (before + self._unparsed[: len(_END) - 1]).find(_END)
        if seam >= 0:
            return seam + len(_END) - len(before)
        limit = min(len(self._unparsed), _CHUNKED_SLICE_BYTES)
        end = self._unparsed.find(_END, 0, limit)
        return end + len(_END) if end >= 0 else limit

    def _feed(self, piece: bytes) -> None:
        in_body = self._in_body
        if in_body and self._body_bytes_left is not None:
            self._body_bytes_left -= len(piece)
        elif in_body:
            self._last_bytes = (self._last_bytes + piece)[1 - len(_END) :]
            self._framing_bytes += len(piece)
            self._framing_bytes_since_data += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause.refusal if isinstance(cause, RefusedError) else MALFORMED)
            return
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(MALFORMED)
            return
        limits = self._limits
        if in_body and (
            self._framing_bytes_since_data > limits.framing_bytes
            or self._framing_bytes > 2**16 + limits.framing_ratio * self._body_bytes
        ):
            self._refuse(FRAMING_TOO_LARGE)

    # What the parser found

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field; trailers are dropped. Raises `RefusedError`."""
        if self._in_body:
            self._trailer_fields += 1
            if self._trailer_fields > self._limits.header_fields:
                raise RefusedError(FRAMING_TOO_LARGE)
            return
        if len(self.headers) >= self._limits.header_fields:
            raise RefusedError(HEAD_TOO_LARGE)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request. Raises `RefusedError`."""
        hosts = [value for name, value in self.headers if name == b"host"]
        if hosts and (len(hosts) > 1 or not is_host(hosts[0].decode("latin-1"))):
            raise RefusedError(WRONG_HOST)
        if not hosts and self.parser.get_http_version() == "1.1":
            raise RefusedError(WRONG_HOST)
        lengths = [int(value) for name, value in self.headers if name == b"content-length"]
        codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):  # no other one is decoded (RFC 9112, 6.1)
            raise RefusedError(UNKNOWN_CODING)
        self._body_bytes_left = None if codings else sum(lengths)
        self._in_body = True
        self._last_bytes = b""
        self._body_bytes = self._framing_bytes = self._framing_bytes_since_data = 0
        self._trailer_fields = 0
        self._enter(_Phase.BODY)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand on a piece of the body."""
        self._body_bytes += len(body)
        if self._body_bytes_left is None:
            self._framing_bytes -= len(body)
            self._framing_bytes_since_data = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._in_body = False
        self._enter(_Phase.HEAD if self.cycle.response_complete else _Phase.RESPONSE)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        self._is_pipeline_paused = False
        self._enter(_Phase.DISCARD if self._in_body else _Phase.HEAD)
        super().on_response_complete()
        if self._unparsed and not self.transport.is_closing():
            self._next_request = self.loop.call_later(
                _PIPELINED_PAUSE_SECONDS,
                self._parse_pipelined,
                context=contextvars.Context(),  # without what the last request's task bound
            )

    def _parse_pipelined(self) -> None:
        self._next_request = None
        if not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._parse()

    # Time

    def _enter(self, phase: _Phase) -> None:
        if (phase is _Phase.HEAD) != (self._phase is _Phase.HEAD):
            self._open_connections.move(self, waiting=phase is _Phase.HEAD)
        self._phase = phase
        self._phase_seconds = 0.0
        self._phase_body_bytes = self._body_bytes

    def _check(self) -> None:
        """Close the connection where the client is too slow."""
        limits = self._limits
        now = self.loop.time()
        # Time in which the loop was blocked is not the client's.
        seconds = min(now - self._checked_at, 2 * limits.check_seconds)
        self._checked_at = now
        self._check_timer = self.loop.call_later(limits.check_seconds, self._check)
        self._check_response(seconds)
        if self.transport.is_closing():
            return
        self._phase_seconds += seconds
        if self._phase is _Phase.HEAD:
            if self._phase_seconds > limits.head_seconds:
                self._refuse(TOO_SLOW if self._unparsed else None)
        elif self._phase is _Phase.BODY:
            self._check_body()
        elif self._phase is _Phase.RESPONSE:
            if self._is_pipeline_paused and self._has_hung_up():
                self.transport.abort()
        elif (
            self._phase_seconds > limits.discard_seconds
            or self._body_bytes - self._phase_body_bytes > limits.discard_bytes
        ):
            self.transport.abort()

    def _has_hung_up(self) -> bool:
        """Whether the client has closed its side, which is not read while reading is paused."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def _check_body(self) -> None:
        window = self._limits.body_window_seconds
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:
            self._enter(_Phase.BODY)  # the client waits for the application
        elif self._phase_seconds > window:
            least = self._limits.body_bytes_per_second * window
            if self._body_bytes - self._phase_body_bytes < least:
                self._refuse(TOO_SLOW)
            else:
                self._enter(_Phase.BODY)

    def resume_writing(self) -> None:
        """The client has read what the application waited to send."""
        super().resume_writing()
        self._write_seconds = 0.0

    def _check_response(self, seconds: float) -> None:
        """Abort where the client does not read what the application waits to send."""
        buffered = self.transport.get_write_buffer_size()
        if not buffered or not (self.flow.write_paused or self.transport.is_closing()):
            self._write_seconds = 0.0
            return
        if not self._write_seconds:
            self._write_buffer_bytes = buffered
        self._write_seconds += seconds
        window = self._limits.response_window_seconds
        if self._write_seconds > window:
            read = self._write_buffer_bytes - buffered
            if read < self._limits.response_bytes_per_second * window:
                self.transport.abort()
            self._write_seconds = 0.0

    # Refusing

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's own hook
        """Refuse what is not HTTP."""
        self._refuse(MALFORMED)

    def _refuse(self, refusal: Refusal | None) -> None:
        """End the connection, with a response where none has begun."""
        self._unparsed.clear()
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if refusal is not None:
            log.info("request refused", status=refusal.status.value, detail=refusal.detail)
            self.transport.write(refusal.render())
        self.transport.close()


def _may_become_a_head(data: bytearray) -> bool:
    """Whether incomplete data may be the beginning of a request (not TLS, not lines without CR)."""
    line_end = data.find(b"\n")
    return (not data or data[:1].isalpha()) and (
        line_end < 0 or data[line_end - 1 : line_end] == b"\r"
    )
