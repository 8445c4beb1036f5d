"""An httpx transport that reads a bounded number of bytes from each server, TLS included.

httpx bounds neither the number of interim responses (1xx) nor what TLS itself exchanges, and it
parses whatever has arrived without yielding to the event loop.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import anyio
import httpcore
import httpx
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

MAX_WIRE_BYTES: Final = 64 * 1024
"""From the first byte of the TLS handshake to the last byte of the response's headers."""
_WIRE_READ_BYTES: Final = 16 * 1024
_PARSED_AT_ONCE_BYTES: Final = 4 * 1024
"""Some 10 ms of parsing, where all of it is interim responses."""


class BoundedTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 over TLS, a connection for each request. Response bodies are not available."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=_Backend(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read the headers of its response. Raises `httpx.TransportError`."""
        assert isinstance(request.stream, httpx.AsyncByteStream)
        try:
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            httpcore.UnsupportedProtocol,
        ) as error:
            raise httpx.TransportError(type(error).__name__) from error
        await response.aclose()
        return httpx.Response(response.status, headers=response.headers, request=request)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


class _Backend(httpcore.AsyncNetworkBackend):
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  httpcore's own
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        try:
            with anyio.fail_after(timeout):
                stream = await anyio.connect_tcp(host, port, local_host=local_address)
        except (OSError, anyio.BrokenResourceError) as error:
            raise httpcore.ConnectError from error
        return _Stream(_Wire(stream))

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Wire(ByteStream):
    """A TCP connection that breaks where the peer sends too much."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._left = MAX_WIRE_BYTES

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._stream.extra_attributes

    async def receive(self, max_bytes: int = _WIRE_READ_BYTES) -> bytes:
        if self._left <= 0:
            raise anyio.BrokenResourceError
        data = await self._stream.receive(min(max_bytes, _WIRE_READ_BYTES))
        self._left -= len(data)
        return data

    async def send(self, item: bytes) -> None:
        await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        await asyncio.sleep(0)  # data that has arrived would be parsed without a pause
        try:
            with anyio.fail_after(timeout):
                return await self._stream.receive(min(max_bytes, _PARSED_AT_ONCE_BYTES))
        except anyio.EndOfStream:
            return b""
        except _BROKEN as error:
            raise httpcore.ReadError from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        try:
            with anyio.fail_after(timeout):
                await self._stream.send(buffer)
        except _BROKEN as error:
            raise httpcore.WriteError from error

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        try:
            with anyio.fail_after(timeout):
                wrapped = await TLSStream.wrap(
                    self._stream,
                    hostname=server_hostname,
                    ssl_context=ssl_context,
                    standard_compatible=False,
                )
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            if isinstance(error, (*_BROKEN, anyio.EndOfStream, ssl.CertificateError)):
                raise httpcore.ConnectError from error
            raise
        return _Stream(wrapped)

    def get_extra_info(self, info: str) -> Any:
        if info != "ssl_object":
            return None
        return self._stream.extra(TLSAttribute.ssl_object, None)  # noqa: S610  no Django


_BROKEN: Final = (
    OSError,  # among them TimeoutError and ssl.SSLError
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
)
