"""Requests to URLs that clients name: to checked addresses, reading a bounded number of bytes.

httpx bounds neither the number of interim responses (1xx) nor what TLS itself exchanges, and it
parses whatever has arrived without yielding to the event loop.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import anyio
import httpcore
import httpx
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

from service.webhooks.url_policy import AddressRefused, Network, Resolver, resolve

MAX_WIRE_BYTES: Final = 64 * 1024
"""From the first byte of the TLS handshake to the last byte of the response's headers; a body may
have so much besides."""
_WIRE_READ_BYTES: Final = 16 * 1024
_PARSED_AT_ONCE_BYTES: Final = 4 * 1024
"""Some 10 ms of parsing, where all of it is interim responses."""


class BoundedTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 over TLS, a connection for each request.

    A response has its body as far as `max_body_bytes` allow it; without them it has none. What is
    longer, or takes much more on the wire, raises `httpx.TransportError`.
    """

    def __init__(self, tls: ssl.SSLContext, *, max_body_bytes: int = 0) -> None:
        self._max_body_bytes = max_body_bytes
        wire_bytes = MAX_WIRE_BYTES + max_body_bytes + max_body_bytes // 8  # TLS and chunks
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=_Backend(wire_bytes),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read its response. Raises `httpx.TransportError`."""
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
            body = await self._body(response)
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            httpcore.UnsupportedProtocol,
        ) as error:
            raise httpx.TransportError(type(error).__name__) from error
        # A small body may be coded so that it would be decoded into a large one.
        headers = [one for one in response.headers if one[0].lower() != b"content-encoding"]
        return httpx.Response(response.status, headers=headers, content=body, request=request)

    async def _body(self, response: httpcore.Response) -> bytes:
        body = bytearray()
        try:
            if self._max_body_bytes:
                async for piece in response.aiter_stream():
                    body += piece
                    if len(body) > self._max_body_bytes:
                        raise httpcore.ReadError
        finally:
            await response.aclose()
        return bytes(body)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


class CheckedClient:
    """Sends requests to https URLs whose addresses are allowed, within bounds.

    Redirects are not followed; proxies of the environment are not used.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        *,
        tls: ssl.SSLContext | None = None,
        timeout_seconds: float,
        max_body_bytes: int = 0,
    ) -> None:
        """`networks` may be reached beside public addresses; see `BoundedTransport` for bodies."""
        self._networks = networks
        self._resolver = Resolver()
        transport = BoundedTransport(
            tls or ssl.create_default_context(), max_body_bytes=max_body_bytes
        )
        self._timeout_seconds = timeout_seconds
        self._client = httpx.AsyncClient(
            transport=transport,
            follow_redirects=False,
            trust_env=False,
            timeout=timeout_seconds,  # of each operation
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def send(
        self,
        method: str,
        url: str,
        *,
        owner: str,
        headers: Mapping[str, str],
        content: bytes | None = None,
    ) -> httpx.Response:
        """Send a request, within the time-out as a whole. Lookups are shared between owners.

        Raises `RequestFailed`, or `TooManyLookups`.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._send(method, url, owner, headers, content)
        except (AddressRefused, httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            # ValueError: a name that cannot exist, such as one with an empty label.
            raise RequestFailed(type(error).__name__) from error

    async def _send(
        self, method: str, url: str, owner: str, headers: Mapping[str, str], content: bytes | None
    ) -> httpx.Response:
        target = httpx.URL(url)
        if target.scheme != "https":
            raise AddressRefused("only https URLs are called")
        # As on the wire: `target.host` is Unicode, which sockets and TLS would encode by IDNA 2003.
        name = target.raw_host.decode("ascii")
        address = await resolve(name, self._networks, self._resolver, owner=owner)
        # The connection goes to the address that was checked; TLS and Host keep the name.
        request = self._client.build_request(
            method,
            target.copy_with(host=address),
            content=content,
            headers={
                "Host": target.netloc.decode().rpartition("@")[2],
                "User-Agent": "imageprompt",
                **headers,
            },
            extensions={"sni_hostname": name},
        )
        return await self._client.send(request)


class RequestFailed(Exception):
    """Raised when a URL may not be called, or its server does not answer as it should."""


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, wire_bytes: int) -> None:
        self._wire_bytes = wire_bytes

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
        return _Stream(_Wire(stream, self._wire_bytes))

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Wire(ByteStream):
    """A TCP connection that breaks where the peer sends too much."""

    def __init__(self, stream: ByteStream, wire_bytes: int) -> None:
        self._stream = stream
        self._left = wire_bytes

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
