"""SIGTERM finishes the requests in flight; what does not come in in time gets a 503."""

import json
import signal
import socket
from collections.abc import Callable

import pytest

from tests import corpus
from tests.running import Running, until
from tests.service.conftest import PNG

BODY = corpus.part("image", PNG, filename="a") + corpus.END
HALF = len(BODY) // 2


def begin(running: Running) -> socket.socket:
    """A connection that has sent half a request, and an API that was then told to stop."""
    connection = socket.create_connection(("127.0.0.1", running.port), timeout=120)
    head = (
        f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n"
        f"Content-Type: {corpus.MULTIPART}\r\nExpect: 100-continue\r\n\r\n"
    )
    connection.sendall(head.encode())
    # The API says so when it begins to read the body: the request is in flight.
    assert connection.recv(1024).startswith(b"HTTP/1.1 100")
    connection.sendall(BODY[:HALF])
    running.process.send_signal(signal.SIGTERM)
    return connection


def answer(connection: socket.socket) -> tuple[bytes, dict[str, str], dict[str, object]]:
    """Status line, headers and JSON of the answer, which ends with the connection."""
    received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = dict(line.decode().lower().split(": ", 1) for line in lines)
    return status, headers, json.loads(body)


@pytest.fixture
def stopped_api(
    make_api: Callable[..., Running], redis_url: str, storage_url: str
) -> Callable[..., Running]:
    """Starts an API with so much grace."""
    return lambda seconds: make_api(
        redis_url=redis_url, storage_url=storage_url, grace_seconds=seconds
    )


def test_an_upload_that_has_begun_is_taken_in_after_sigterm(
    stopped_api: Callable[[float], Running],
) -> None:
    with stopped_api(60) as running, begin(running) as connection:
        until(lambda: not listens(running.port), what="that it takes nothing new")
        connection.sendall(BODY[HALF:])
        status, _, body = answer(connection)
        assert status.startswith(b"HTTP/1.1 202")
        assert body["status"] == "queued"
        assert running.process.wait(60) == 0


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_an_upload_that_does_not_come_in_is_told_to_come_again(
    stopped_api: Callable[[float], Running],
) -> None:
    with stopped_api(0.5) as running, begin(running) as connection:
        status, headers, body = answer(connection)
        assert status.startswith(b"HTTP/1.1 503")
        assert headers["content-type"] == "application/problem+json"
        assert headers["connection"] == "close"
        assert int(headers["retry-after"]) > 0
        assert body["type"] == "urn:imageprompt:error:stopping"
        assert running.process.wait(60) == 0
