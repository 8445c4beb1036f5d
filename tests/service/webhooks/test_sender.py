"""One webhook, sent once: to the address that was checked, over TLS, and no longer than allowed."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import pytest

from service.webhooks.delivery import DeliveryOutcome, Sender
from tests.running import until
from tests.service.conftest import WEBHOOK_SECRET
from tests.service.webhooks.conftest import LOOPBACK, NAME, Receiver, trusting


def send(url: str, make_sender: Callable[[], Sender]) -> DeliveryOutcome:
    """What becomes of a webhook to `url`."""

    async def run() -> DeliveryOutcome:
        sender = make_sender()
        try:
            return await sender.send(url, "msg_1", "{}", WEBHOOK_SECRET, owner="a")
        finally:
            await sender.close()

    return asyncio.run(run())


def test_the_name_is_looked_up_once_and_kept_for_tls(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = socket.getaddrinfo

    def answer(host: str, *more: object, **options: object) -> object:
        if host == NAME:
            asked.append(host)
            host = "127.0.0.1" if len(asked) == 1 else "127.0.0.99"
        return real(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    url = f"https://{NAME}:{receiver.port}/hook"
    assert send(url, trusting(receiver)) is DeliveryOutcome.DELIVERED
    assert asked == [NAME]
    assert receiver.names == [NAME]
    assert receiver.seen[0][1]["Host"] == f"{NAME}:{receiver.port}"


def test_a_name_is_called_as_it_is_written(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own IDNA takes "xn--strae-oqa" to "strasse", which may be somebody else's."""
    asked = []

    def answer(host: str, *_: object, **__: object) -> object:
        asked.append(host)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    names = ("xn--strae-oqa.de", "xn--ls8h.la", f"{'a' * 64}.de")
    for name in names:
        assert send(f"https://{name}/", trusting(receiver)) is DeliveryOutcome.FAILED
    assert asked == list(names)


def test_it_is_not_sent_where_it_must_not_be(receiver: Receiver) -> None:
    tls = ssl.create_default_context(cafile=str(receiver.certificate))
    cases = [
        (receiver.url, lambda: Sender((), tls=tls)),  # loopback is not allowed
        (receiver.url, lambda: Sender(LOOPBACK)),  # nobody vouches for the certificate
        (receiver.url.replace("https", "http"), lambda: Sender(LOOPBACK, tls=tls)),
        ("https://127.0.0.1:9/", lambda: Sender(LOOPBACK, tls=tls)),
        ("https://no-such-name.invalid/", lambda: Sender(LOOPBACK, tls=tls)),
        (f"https://{'a' * 64}.invalid/", lambda: Sender(LOOPBACK, tls=tls)),
    ]
    assert [send(*case) for case in cases] == [DeliveryOutcome.FAILED] * len(cases)
    assert receiver.seen == []


def test_a_receiver_that_never_answers_is_hung_up_on(receiver: Receiver) -> None:
    receiver.delay_seconds = 30
    # Long enough for TLS on a busy machine: broken off within it, httpcore leaves its socket open.
    assert send(receiver.url, trusting(receiver, timeout_seconds=3)) is DeliveryOutcome.FAILED
    assert receiver.seen


FLOOD_BYTES = 64 * 2**20


@pytest.fixture
def flooding(
    receiver: Receiver,
) -> Iterator[Callable[[bytes, bytes], tuple[Receiver, list[int]]]]:
    """Starts a receiver that answers `first` and then `again` without end, or 64 MiB of it.

    The list is the number of bytes that it could send.
    """
    with contextlib.ExitStack() as stack:

        def start(first: bytes, again: bytes) -> tuple[Receiver, list[int]]:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(receiver.certificate)
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            sent: list[int] = []

            def serve() -> None:
                count = 0
                with contextlib.suppress(OSError):
                    accepted, _ = listener.accept()
                    with context.wrap_socket(accepted, server_side=True) as connection:
                        connection.recv(65536)
                        connection.sendall(first)
                        block = again * max(1, 65536 // len(again))
                        while count < FLOOD_BYTES:
                            connection.sendall(block)
                            count += len(block)
                sent.append(count)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            stack.callback(thread.join, 60)
            return Receiver(listener.getsockname()[1], receiver.certificate), sent

        yield start


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"", b"HTTP/1.1 100\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
        (b"HTTP/1.1 200 OK\r\na: ", b"x" * 1024),
        (b"", b"x" * 1024),
        (b"", b"\r\n"),
    ],
)
def test_what_a_receiver_sends_before_its_answer_is_bounded(
    flooding: Callable[[bytes, bytes], tuple[Receiver, list[int]]], first: bytes, again: bytes
) -> None:
    flood, sent = flooding(first, again)
    assert send(flood.url, trusting(flood, timeout_seconds=300)) is DeliveryOutcome.FAILED
    until(lambda: sent, what="the end of the flood")
    assert sent[0] < FLOOD_BYTES, "the sender hung up; the rest is what the kernel had taken"


@pytest.mark.parametrize("length", [b"Transfer-Encoding: chunked", b"Content-Length: 99999999999"])
def test_the_body_of_an_answer_is_not_read(
    flooding: Callable[[bytes, bytes], tuple[Receiver, list[int]]], length: bytes
) -> None:
    flood, sent = flooding(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n", b"1;x=y\r\na\r\n")
    assert send(flood.url, trusting(flood, timeout_seconds=300)) is DeliveryOutcome.DELIVERED
    until(lambda: sent, what="the end of the flood")
    assert sent[0] < FLOOD_BYTES
