"""One webhook, sent once: to the address that was checked, over TLS, and no longer than allowed."""

import asyncio
import socket
import ssl
from collections.abc import Callable

import pytest

from service.webhooks.sender import DeliveryOutcome, Sender
from tests.service.conftest import WEBHOOK_SECRET
from tests.service.webhooks.conftest import LOOPBACK, NAME, Receiver, trusting


def send(url: str, make_sender: Callable[[], Sender]) -> DeliveryOutcome:
    """What becomes of a webhook to `url`."""

    async def run() -> DeliveryOutcome:
        sender = make_sender()
        try:
            return await sender.send(url, "msg_1", "{}", WEBHOOK_SECRET)
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
