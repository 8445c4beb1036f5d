"""HTTP below the application: what a client sends outside a body has a bound, and costs no other.

A real server with limits that are short enough for a test, around an application that answers with
the request's body; and the API itself where memory counts.
"""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.connections import HttpLimits
from service.http_protocol import HttpProtocol
from service.server import Server
from tests import corpus
from tests.hostile_clients import resident_kib
from tests.running import Running, until
from tests.service.conftest import PNG, Api

HEAD = b"Host: x\r\n"
GET = b"GET / HTTP/1.1\r\n" + HEAD + b"\r\n"
CHUNKED = b"POST / HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BODY_MIB = 2**20


@dataclass
class Echo:
    """Answers with the request's body. Requests wait while `gate` is closed."""

    started: int = 0
    most: int = 0
    running: int = 0
    headers: list[list[tuple[bytes, bytes]]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    answer_bytes: int | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        self.started += 1
        self.running += 1
        self.most = max(self.most, self.running)
        self.headers.append(scope["headers"])
        try:
            body = b""
            while scope["path"] != "/early":
                message: Message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message.get("body", b"")
                if not message.get("more_body"):
                    break
            await asyncio.to_thread(self.gate.wait)
            if self.answer_bytes is not None:
                body = bytes(self.answer_bytes)
            length = str(len(body)).encode()
            headers = [(b"content-length", length)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        finally:
            self.running -= 1


@dataclass
class Serving:
    """A server in a thread of this process."""

    app: Echo
    port: int
    server: Server

    def connect(self) -> socket.socket:
        """A new connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def ask(self, data: bytes) -> bytes:
        """All that is answered to `data` until the server closes the connection."""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """What still comes in before the connection ends."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            received += data
    return received


def read_answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """Status line and body of one response on a connection that stays open."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, head
        head += byte
    [length] = [
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    ]
    body = b""
    while len(body) < length:
        data = connection.recv(length - len(body))
        assert data, head
        body += data
    return head.split(b"\r\n")[0], body


@pytest.fixture
def serve() -> Iterator[Callable[..., Serving]]:
    """Starts servers with given limits; all end with the test."""
    with contextlib.ExitStack() as stack:

        def start(limits: HttpLimits = HttpLimits(), connections: int = 100) -> Serving:  # noqa: B008  frozen
            app = Echo()
            app.gate.set()
            server = Server(
                app,  # type: ignore[arg-type]  # any application
                "127.0.0.1",
                0,
                loopback_only=False,
                grace_seconds=0,
                max_connections=connections,
                limits=limits,
            )
            thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
            thread.start()
            until(lambda: server.started, what="the server")

            def stop() -> None:
                app.gate.set()
                server.should_exit = True
                thread.join(60)

            stack.callback(stop)
            port = server.servers[0].sockets[0].getsockname()[1]
            return Serving(app, port, server)

        yield start


QUICK = HttpLimits(
    head_seconds=0.5,
    body_window_seconds=0.5,
    response_window_seconds=0.5,
    discard_seconds=0.5,
    check_seconds=0.05,
)


def refused(answer: bytes, status: int) -> None:
    """An answer that is a problem document and ends the connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), answer[:300]
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == status


def test_pipelined_requests_are_answered_one_after_another(serve: Callable[..., Serving]) -> None:
    """And in turns with requests of others: each waits for 50 ms after the answer before it."""
    serving = serve()
    serving.app.gate.clear()
    with serving.connect() as connection:
        connection.sendall(GET * 20)
        until(lambda: serving.app.started, what="the first request")
        time.sleep(0.2)  # a second one, if it came, would have begun
        assert serving.app.started == 1
        serving.app.gate.set()
        received, began = b"", time.monotonic()
        while received.count(b"HTTP/1.1 200") < 20:
            data = connection.recv(65536)
            assert data
            received += data
    assert time.monotonic() - began > 18 * 0.05
    assert serving.app.most == 1


def test_a_pipelined_flood_is_not_kept_in_memory(serve: Callable[..., Serving]) -> None:
    serving = serve()
    serving.app.gate.clear()
    with serving.connect() as connection:
        connection.settimeout(2)
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            while sent < 64 * BODY_MIB:  # the kernel keeps some MiB on both sides
                sent += connection.send(GET * 10_000)
        assert sent < 32 * BODY_MIB
        assert serving.app.started == 1


def test_trailers_are_bounded_and_never_become_headers(serve: Callable[..., Serving]) -> None:
    serving = serve()
    end = b"2\r\nab\r\n0\r\nX-Key: forged\r\n\r\n"
    with serving.connect() as connection:
        connection.sendall(CHUNKED + end + GET)
        assert read_answer(connection) == (b"HTTP/1.1 200 OK", b"ab")
        assert read_answer(connection)[0] == b"HTTP/1.1 200 OK"
    assert all(name != b"x-key" for names in serving.app.headers for name, _ in names)
    for flood in (b"a: b\r\n" * 101 + b"\r\n", b"a: b\r\n" * 100_000, b"a: " + b"x" * BODY_MIB):
        refused(serving.ask(CHUNKED + b"2\r\nab\r\n0\r\n" + flood), 400)


def test_chunk_extensions_are_bounded(serve: Callable[..., Serving]) -> None:
    serving = serve()
    refused(serving.ask(CHUNKED + b"2;" + b"x" * BODY_MIB), 400)
    refused(serving.ask(CHUNKED + (b"1;" + b"x" * 8000 + b"\r\na\r\n") * 1000), 400)
    with serving.connect() as connection:  # as small as chunks can be, and with a short extension
        connection.sendall(CHUNKED + b"1;a=b\r\na\r\n" * 50_000 + b"0\r\n\r\n")
        assert read_answer(connection) == (b"HTTP/1.1 200 OK", b"a" * 50_000)


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 7])
def test_a_chunked_body_may_be_cut_anywhere(serve: Callable[..., Serving], cut: int) -> None:
    serving = serve()
    request = CHUNKED + b"4\r\n\r\n\r\n\r\n2\r\nab\r\n0\r\nT: x\r\n\r\n"
    message = request + GET + request
    with serving.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(message), cut):
            connection.sendall(message[at : at + cut])
        bodies = [read_answer(connection)[1] for _ in range(3)]
    assert bodies == [b"\r\n\r\nab", b"", b"\r\n\r\nab"]
    assert serving.app.started == 3


def test_an_upload_ends_in_one_read_with_the_next_head(api: Api) -> None:
    """uvloop reads up to 256 KiB at once: the tail of a body is no head that is too long."""
    part = corpus.part("image", PNG + bytes(250_000), filename="a") + corpus.END
    post = (
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: "
        + corpus.MULTIPART.encode()
        + f"\r\nContent-Length: {len(part)}\r\n\r\n".encode()
    )
    begun = b"GET /healthz/live HTTP/1.1\r\n"
    with socket.create_connection(("127.0.0.1", api.running.port), timeout=60) as connection:
        connection.sendall(post + part + begun)
        assert read_answer(connection)[0] == b"HTTP/1.1 202 Accepted"
        connection.sendall(HEAD + b"\r\n")
        assert read_answer(connection)[0] == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize("framing", [b"Content-Length: 3\r\n\r\nabc", b""])
def test_an_offer_to_upgrade_is_ignored_and_the_body_kept(
    serve: Callable[..., Serving], framing: bytes
) -> None:
    """As `java.net.http` and `curl --http2` offer it (uvicorn's issue 2722)."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    chunked = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    with serve().connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\n" + HEAD + offer + (framing or chunked) + GET)
        assert read_answer(connection) == (b"HTTP/1.1 200 OK", b"abc")
        assert read_answer(connection) == (b"HTTP/1.1 200 OK", b"")


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"Host: a\r\nHost: a\r\n",
        b"Host: a\r\nhost: b\r\n",
        b"Host: a b\r\n",
        b"Host: a/b\r\n",
        b"Host: user@a\r\n",
        b"Host: a:port\r\n",
        b"Host: a:65536\r\n",
        b"Host: [::::]\r\n",
        b"Host: [1.2.3.4]\r\n",
        b"Host: " + b"a" * 300 + b"\r\n",
        b"Host:\r\n",
    ],
)
def test_a_request_has_exactly_one_good_host(serve: Callable[..., Serving], lines: bytes) -> None:
    refused(serve().ask(b"GET / HTTP/1.1\r\n" + lines + b"\r\n"), 400)


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"identity, chunked", b"deflate,Chunked"])
def test_a_transfer_coding_that_is_not_decoded_is_refused(
    serve: Callable[..., Serving], coding: bytes
) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: " + coding + b"\r\n\r\n"
    refused(serve().ask(head + b"0\r\n\r\n"), 501)


@pytest.mark.parametrize("host", [b"a", b"a.example:8000", b"[::1]:80", b"10.0.0.1", b"a_b-c.d"])
def test_good_hosts_are_served(serve: Callable[..., Serving], host: bytes) -> None:
    with serve().connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        assert read_answer(connection)[0] == b"HTTP/1.1 200 OK"


def test_http_1_0_needs_no_host(serve: Callable[..., Serving]) -> None:
    assert serve().ask(b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 OK")


def test_headers_are_bounded_in_number(serve: Callable[..., Serving]) -> None:
    serving = serve()
    refused(serving.ask(b"GET / HTTP/1.1\r\n" + HEAD + b"a: b\r\n" * 500 + b"\r\n"), 400)
    assert serving.app.started == 0


def test_what_is_not_http_is_refused_at_once(serve: Callable[..., Serving]) -> None:
    serving = serve()
    for data in (
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"PRI * HTTP/2.0\r\n\r\n",
    ):
        refused(serving.ask(data), 400)


def test_connections_that_send_nothing_are_closed(serve: Callable[..., Serving]) -> None:
    serving = serve(QUICK)
    assert serving.ask(b"") == b""
    with serving.connect() as connection:  # one byte now and then does not keep it open
        with contextlib.suppress(ConnectionError):
            for byte in GET:
                connection.sendall(bytes([byte]))
                time.sleep(0.1)
        refused(read_all(connection), 408)
    until(lambda: not serving.server.server_state.connections, what="the end of all connections")


def test_a_body_that_stands_still_is_refused(serve: Callable[..., Serving]) -> None:
    serving = serve(QUICK)
    head = b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Length: 100000\r\n\r\n"
    refused(serving.ask(head + b"x"), 408)
    until(lambda: not serving.app.running, what="the end of the request")


def test_a_client_that_waits_for_100_continue_is_not_too_slow(
    serve: Callable[..., Serving],
) -> None:
    serving = serve(QUICK)
    head = b"POST / HTTP/1.1\r\n" + HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    with serving.connect() as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"abc")
        assert read_answer(connection) == (b"HTTP/1.1 200 OK", b"abc")


def test_a_client_that_does_not_read_is_disconnected(serve: Callable[..., Serving]) -> None:
    serving = serve(QUICK)
    serving.app.answer_bytes = 64 * BODY_MIB
    with serving.connect() as connection:
        connection.sendall(GET)
        until(lambda: serving.app.started, what="the request")
        until(lambda: not serving.server.server_state.connections, what="the end of the connection")


def test_a_body_after_its_response_is_not_read_for_ever(serve: Callable[..., Serving]) -> None:
    serving = serve(QUICK)
    head = b"POST /early HTTP/1.1\r\n" + HEAD + b"Content-Length: 1000000000000\r\n\r\n"
    with serving.connect() as connection:
        connection.sendall(head)
        assert read_answer(connection)[0] == b"HTTP/1.1 200 OK"
        with contextlib.suppress(ConnectionError):
            while True:
                connection.sendall(bytes(65536))
                time.sleep(0.001)


def test_what_is_dropped_is_read_in_turns_with_other_connections(
    serve: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    """libuv reads on while a buffer comes in full, so that other connections wait for 8 MB."""
    received, reading = HttpProtocol.data_received, []

    def note(self: HttpProtocol, data: bytes) -> None:
        received(self, data)
        if not data.startswith((b"POST", b"GET")):
            reading.append(self.transport.is_reading())

    monkeypatch.setattr(HttpProtocol, "data_received", note)
    serving, body = serve(), bytes(2 * BODY_MIB)
    head = b"POST /early HTTP/1.1\r\n" + HEAD
    with serving.connect() as connection:
        connection.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode())
        assert read_answer(connection)[0] == b"HTTP/1.1 200 OK"
        connection.sendall(body)
        connection.sendall(GET)
        assert read_answer(connection)[0] == b"HTTP/1.1 200 OK"
    assert reading
    assert not any(reading)


def test_silent_connections_keep_no_client_out(serve: Callable[..., Serving]) -> None:
    serving = serve(connections=20)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(serving.connect()) for _ in range(100)]
        for _ in range(3):
            with serving.connect() as connection:
                connection.sendall(GET)
                assert read_answer(connection)[0] == b"HTTP/1.1 200 OK"
        assert len(serving.server.server_state.connections) <= 20
        assert silent[0].recv(1) == b"", "that which has waited longest is closed first"


def test_connections_in_use_are_not_closed_for_new_ones(serve: Callable[..., Serving]) -> None:
    serving = serve(connections=4)  # two of one address
    serving.app.gate.clear()
    with serving.connect() as first, serving.connect() as second:
        for connection in (first, second):
            connection.sendall(GET)
        until(lambda: serving.app.running == 2, what="both requests")
        refused(serving.ask(b""), 503)
        serving.app.gate.set()
        for connection in (first, second):
            assert read_answer(connection)[0] == b"HTTP/1.1 200 OK"


def flood(running: Running, head: bytes, piece: bytes, mebibytes: int) -> None:
    """Send as much as the API reads, up to so many MiB."""
    with (
        contextlib.suppress(TimeoutError, ConnectionError),
        socket.create_connection(("127.0.0.1", running.port), timeout=3) as connection,
    ):
        connection.sendall(head)
        for _ in range(mebibytes):
            connection.sendall(piece * (BODY_MIB // len(piece)))


def test_floods_below_the_application_leave_its_memory_alone(api: Api) -> None:
    before = resident_kib(api.running)
    chunked = CHUNKED.replace(b"POST /", b"POST /generate")
    flood(api.running, chunked + b"0\r\n", b"a: b\r\n", 20)
    flood(api.running, chunked + b"0\r\na: ", b"x" * 1024, 20)
    flood(api.running, b"", b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n", 5)
    assert api.client.get("/healthz/live").status_code == 200
    assert resident_kib(api.running) - before < 50 * 1024


def test_more_silent_connections_than_open_files_do_not_stop_the_api(
    make_api: Callable[..., Running], redis_url: str, storage_url: str
) -> None:
    with make_api(redis_url=redis_url, storage_url=storage_url, max_connections=50) as running:
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(
                    socket.create_connection(("127.0.0.1", running.port), timeout=60)
                )
            with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
                connection.sendall(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n")
                assert read_answer(connection)[0] == b"HTTP/1.1 200 OK"
        assert running.process.poll() is None
