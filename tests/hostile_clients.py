"""Slow, pipelining and stalling clients beside an honest one, against one API on loopback.

`python -m tests.hostile CASES SECONDS` runs them for so long and prints what the honest one saw.
"""

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from service.core.settings import ROOT
from tests import corpus
from tests.running import KEEP, Running

HOST = b"Host: localhost\r\n"
GET = b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n"
UPLOAD = corpus.part("image", corpus.saved(corpus.picture(), "PNG"), filename="a") + corpus.END
MAX_FLOOD_BYTES = 20 * 2**20
"""Of one hostile connection."""
STAY_SECONDS = 10.0
"""Of one hostile connection, unless the API ends it before."""
HONEST_PAUSE_SECONDS = 0.05

Deed = Callable[[asyncio.StreamReader, asyncio.StreamWriter, random.Random], Awaitable[None]]


@dataclass
class Siege:
    """What hostile clients did, and what the honest one saw meanwhile."""

    connections: Counter[str] = field(default_factory=Counter)
    """Hostile ones, by kind."""
    polls_seconds: list[float] = field(default_factory=list)
    undisturbed_seconds: list[float] = field(default_factory=list)
    """Of the same polls before."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Of the honest client's polls and uploads."""
    failures: Counter[str] = field(default_factory=Counter)
    """Of the honest client, by exception."""
    resident_before_kib: int = 0
    resident_most_kib: int = 0
    open_files: int = 0
    """Of the API when all is over, above those before."""

    def lines(self) -> list[str]:
        """The figures as text."""
        before, most = self.resident_before_kib / 1024, self.resident_most_kib / 1024
        quiet = quantile(self.undisturbed_seconds, 0.99)
        loud = quantile(self.polls_seconds, 0.99)
        return [
            f"hostile connections: {dict(sorted(self.connections.items()))}",
            f"honest answers: {dict(self.statuses)}, failures: {dict(self.failures)}",
            f"honest polls p99: {quiet * 1e3:.1f} ms undisturbed, {loud * 1e3:.1f} ms beside them",
            f"resident {before:.1f} MiB before, {most:.1f} MiB at most",
            f"files open above those before: {self.open_files}",
        ]


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of them are; 0 where there is none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def resident_kib(running: Running) -> int:
    """Memory that the process has resident now."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if "VmRSS" in line).split()[1])


def open_files(running: Running) -> int:
    """File descriptors that the process has open now."""
    return len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))


def _head(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def _upload_head(length: int) -> bytes:
    return _head("/generate", f"Content-Type: {corpus.MULTIPART}", f"Content-Length: {length}")


async def _silent(reader: asyncio.StreamReader, *_: object) -> None:
    await reader.read()


async def _slow_head(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _chance: random.Random
) -> None:
    for byte in b"GET /jobs HTTP/1.1\r\n" + HOST + b"x: " + b"y" * 1000:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.2)


async def _stalled_body(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random
) -> None:
    writer.write(_upload_head(5 * 2**20) + UPLOAD[: chance.randrange(len(UPLOAD))])
    await reader.read()


async def _slow_body(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _chance: random.Random
) -> None:
    writer.write(_upload_head(len(UPLOAD)))
    for at in range(len(UPLOAD)):
        writer.write(UPLOAD[at : at + 1])
        await asyncio.sleep(0.1)


async def _pipelined(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _chance: random.Random
) -> None:
    for _ in range(100):
        writer.write(GET * 1000)
        await writer.drain()


async def _trailers(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _chance: random.Random
) -> None:
    writer.write(_head("/generate", "Transfer-Encoding: chunked") + b"0\r\n")
    await _flood(writer, b"a: b\r\n" * 10_000)


async def _extensions(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _chance: random.Random
) -> None:
    writer.write(_head("/generate", "Transfer-Encoding: chunked"))
    await _flood(writer, (b"1;" + b"x" * 1000 + b"\r\na\r\n") * 60)


async def _endless_headers(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _chance: random.Random
) -> None:
    writer.write(b"GET / HTTP/1.1\r\n" + HOST)
    await _flood(writer, b"a: b\r\n" * 10_000)


async def _body_after_its_answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _chance: random.Random
) -> None:
    writer.write(_upload_head(10**12))
    await _flood(writer, bytes(65536))


async def _reads_nothing(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _chance: random.Random
) -> None:
    writer.write(GET * 500)  # the stream reader stops reading when its buffer is full
    await asyncio.sleep(STAY_SECONDS)


async def _cut_upload(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random
) -> None:
    writer.write(_upload_head(len(UPLOAD)) + UPLOAD[: chance.randrange(len(UPLOAD))])
    await writer.drain()
    writer.transport.abort()


async def _garbage(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random
) -> None:
    request = bytearray(_upload_head(len(UPLOAD)) + UPLOAD + GET)
    for _ in range(chance.randint(1, 20)):
        request[chance.randrange(len(request))] = chance.randrange(256)
    writer.write(request)
    await reader.read(65536)


async def _flood(writer: asyncio.StreamWriter, block: bytes) -> None:
    for _ in range(MAX_FLOOD_BYTES // len(block)):
        writer.write(block)
        await writer.drain()


DEEDS: dict[str, Deed] = {
    "silent": _silent,
    "slow head": _slow_head,
    "stalled body": _stalled_body,
    "slow body": _slow_body,
    "pipelined": _pipelined,
    "trailers": _trailers,
    "chunk extensions": _extensions,
    "endless headers": _endless_headers,
    "body after its answer": _body_after_its_answer,
    "reads nothing": _reads_nothing,
    "cut upload": _cut_upload,
    "garbage": _garbage,
}


def besiege(running: Running, *, seconds: float, clients: int = 40, seed: int = 0) -> Siege:
    """Let so many hostile clients at once do their deeds in turn for a while.

    They are in a process of their own, or the honest client would wait for them in its own.
    """
    siege = Siege(resident_before_kib=resident_kib(running))
    files = open_files(running)
    asyncio.run(_honest(running, siege, min(5.0, seconds), siege.undisturbed_seconds))
    numbers = [str(number) for number in (running.port, seconds, clients, seed)]
    command = [sys.executable, "-W", "ignore", "-m", "tests.hostile_clients", *numbers]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as hostile:
        asyncio.run(_honest(running, siege, seconds, siege.polls_seconds))
        siege.connections = Counter(json.loads(hostile.communicate()[0]))
    for _ in range(100):  # what has ended is noticed soon
        if open_files(running) <= files + 2:
            break
        time.sleep(0.5)
    siege.open_files = max(0, open_files(running) - files)
    return siege


async def _attack(port: int, seconds: float, clients: int, seed: int) -> Counter[str]:
    until = time.monotonic() + seconds
    connections: Counter[str] = Counter()
    await asyncio.gather(
        *(
            _hostile(port, connections, until, random.Random(seed + number))
            for number in range(clients)
        )
    )
    return connections


async def _hostile(
    port: int, connections: Counter[str], until: float, chance: random.Random
) -> None:
    while (left := until - time.monotonic()) > 0:
        name = chance.choice(list(DEEDS))
        connections[name] += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                async with asyncio.timeout(min(left, STAY_SECONDS)):
                    await DEEDS[name](reader, writer, chance)
            finally:
                writer.transport.abort()
        await asyncio.sleep(0.05)


async def _honest(running: Running, siege: Siege, seconds: float, times: list[float]) -> None:
    """Poll again and again, and upload now and then."""
    until, uploaded_at = time.monotonic() + seconds, 0.0
    async with httpx.AsyncClient(base_url=running.url, timeout=60, limits=KEEP) as client:
        while (now := time.monotonic()) < until:
            try:
                answer = await client.get("/jobs?limit=1")
                times.append(time.monotonic() - now)
                siege.statuses[answer.status_code] += 1
                if now - uploaded_at > 1:
                    uploaded_at = now
                    kind = {"content-type": corpus.MULTIPART}
                    answer = await client.post("/generate", content=UPLOAD, headers=kind)
                    siege.statuses[answer.status_code] += 1
            except httpx.TransportError as error:
                siege.failures[type(error).__name__] += 1
            siege.resident_most_kib = max(siege.resident_most_kib, resident_kib(running))
            await asyncio.sleep(HONEST_PAUSE_SECONDS)


def main() -> None:
    """Attack a port for some seconds; print how many connections of each kind there were."""
    port, seconds, clients, seed = sys.argv[1:]
    connections = asyncio.run(_attack(int(port), float(seconds), int(clients), int(seed)))
    sys.stdout.write(json.dumps(connections))


if __name__ == "__main__":
    main()
