"""A closed loop of HTTP/1.1 clients on kept-alive connections, whatever they request.

The requests are bytes made beforehand, so that the clients cost as little as they can.
"""

import asyncio
import time
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run of the loop saw. `seconds` holds the time of every good answer, sorted."""

    seconds: tuple[float, ...]
    errors: int
    """Answers with a status of 400 or more."""
    lasted: float

    @property
    def per_second(self) -> float:
        """Good answers a second."""
        return len(self.seconds) / self.lasted

    def quantile(self, share: float) -> float:
        """Seconds within which `share` of the good answers came."""
        return self.seconds[min(int(share * len(self.seconds)), len(self.seconds) - 1)]


def request(
    method: str, url: str, body: bytes = b"", content_type: str = "", **headers: str
) -> bytes:
    """Build the bytes of one request."""
    parts = urlsplit(url)
    lines = [f"{method} {parts.path} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def run(
    url: str, message: bytes, *, clients: int, lasts_seconds: float, pause_seconds: float = 0.0
) -> Figures:
    """Send `message` again and again from `clients` connections for a while.

    Each client pauses after each answer.
    """
    return asyncio.run(_run(url, message, clients, lasts_seconds, pause_seconds))


async def _run(
    url: str, message: bytes, clients: int, lasts_seconds: float, pause_seconds: float
) -> Figures:
    began = time.perf_counter()
    until = began + lasts_seconds
    answers = await asyncio.gather(
        *(_client(url, message, until, pause_seconds) for _ in range(clients))
    )
    lasted = time.perf_counter() - began
    seconds = sorted(s for taken, _ in answers for s in taken)
    return Figures(tuple(seconds), sum(errors for _, errors in answers), lasted)


async def _client(
    url: str, message: bytes, until: float, pause_seconds: float
) -> tuple[list[float], int]:
    parts = urlsplit(url)
    taken: list[float] = []
    errors = 0
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    while (now := time.perf_counter()) < until:
        writer.write(message)
        await writer.drain()
        status, keep = await answer(reader)
        if status < 400:
            taken.append(time.perf_counter() - now)
        else:
            errors += 1
        if not keep:
            writer.close()
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        await asyncio.sleep(pause_seconds)
    writer.close()
    return taken, errors


async def answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Read one answer; its status, and whether the connection goes on."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = 0
    for line in head.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    status = int(head.split(b" ", 2)[1])
    if status != HTTPStatus.NOT_MODIFIED:
        await reader.readexactly(length)
    return status, b"connection: close" not in head
