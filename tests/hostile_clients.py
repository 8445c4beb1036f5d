"""Slow, pipelining and stalling clients beside an honest one, against one API on loopback.

`python -m tests.hostile CASES SECONDS` runs them for so long and reports what the honest one saw.
Between their attacks it is left alone, so that both figures are of the same minutes of a machine
that does other things too.
"""

import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from service.core.settings import ROOT
from tests import corpus, hostile_grammar
from tests.running import KEEP, Running

HOST = b"Host: localhost\r\n"
GET = b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n"
UPLOAD = corpus.part("image", corpus.saved(corpus.picture(), "PNG"), filename="a") + corpus.END
MAX_FLOOD_BYTES = 20 * 2**20
"""Of one hostile connection."""
STAY_SECONDS = 10.0
"""Of one hostile connection, unless the API ends it before."""
HONEST_PAUSE_SECONDS = 0.05
LOUD_SECONDS = 60.0
QUIET_SECONDS = 20.0

Deed = Callable[[asyncio.StreamReader, asyncio.StreamWriter, random.Random], Awaitable[None]]


@dataclass
class Siege:
    """What hostile clients did, and what the honest one saw meanwhile."""

    connections: Counter[str] = field(default_factory=Counter)
    """Hostile ones, by kind."""
    polls_seconds: list[float] = field(default_factory=list)
    undisturbed_seconds: list[float] = field(default_factory=list)
    """Of the same polls between the attacks."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Of the honest client's polls and uploads."""
    failures: Counter[str] = field(default_factory=Counter)
    """Of the honest client, by exception."""
    resident_before_kib: int = 0
    resident_most_kib: int = 0

    @property
    def all_answered(self) -> bool:
        """Whether every request of the honest client was answered as it should be."""
        return not self.failures and set(self.statuses) == {200, 202}

    @property
    def times_slower(self) -> float:
        """How much slower its polls were at p99."""
        quiet = quantile(self.undisturbed_seconds, 0.99)
        return quantile(self.polls_seconds, 0.99) / quiet if quiet else 0.0

    def lines(self) -> list[str]:
        """The figures as text."""
        before, most = self.resident_before_kib / 1024, self.resident_most_kib / 1024
        return [
            f"hostile connections: {dict(sorted(self.connections.items()))}",
            f"honest answers: {dict(self.statuses)}, failures: {dict(self.failures)}",
            f"honest polls undisturbed: {_milliseconds(self.undisturbed_seconds)}",
            f"honest polls beside them: {_milliseconds(self.polls_seconds)}",
            f"resident {before:.1f} MiB before, {most:.1f} MiB at most",
        ]


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of them are; 0 where there is none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def _milliseconds(values: list[float]) -> str:
    p50, p99 = (1e3 * quantile(values, share) for share in (0.5, 0.99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms of {len(values)}"


def resident_kib(running: Running) -> int:
    """Memory that the process has resident now."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if "VmRSS" in line).split()[1])


def open_files(running: Running, redis_port: int) -> int:
    """File descriptors that the process has open now, apart from its connections to Redis."""
    process = Path(f"/proc/{running.process.pid}")
    to_redis = {
        f"socket:[{fields[9]}]"
        for fields in map(str.split, (process / "net/tcp").read_text().splitlines()[1:])
        if int(fields[2].rpartition(":")[2], 16) == redis_port
    }
    count = 0
    for path in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += str(path.readlink()) not in to_redis
    return count


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


async def _chunks(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random
) -> None:
    for _ in range(20):
        writer.write(hostile_grammar.chunked_request("/generate", UPLOAD, chance))
        await writer.drain()
        await asyncio.wait_for(reader.read(65536), 2)
        await asyncio.sleep(0.5)  # hostile by their form; `tests.faults.overload` is by number


async def _mixed_pipeline(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random
) -> None:
    """Good, bad and half requests of all kinds in one write."""
    whole = _upload_head(len(UPLOAD)) + UPLOAD
    kinds = (GET, whole, _head("/generate", "Content-Length: 0"), b"\r\n", whole[:-200], b"\0")
    writer.write(b"".join(chance.choice(kinds) for _ in range(50)))
    while await reader.read(65536):
        pass


async def _event_streams(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random
) -> None:
    """Follow a job that nobody works on, and stand still, read slowly or hang up."""
    writer.write(_upload_head(len(UPLOAD)) + UPLOAD)
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"location: \S*(/jobs/[0-9a-f-]+)", head, re.IGNORECASE)
    if found is None:
        return
    last = chance.choice((b"0-0", b"9999999999999-0", b"x", b"1" * 500))
    lines = b"Last-Event-ID: " + last + b"\r\n" if chance.random() < 0.5 else b""
    writer.write(b"GET " + found[1] + b"/events HTTP/1.1\r\n" + HOST + lines + b"\r\n")
    match chance.randrange(3):
        case 0:
            await asyncio.sleep(STAY_SECONDS)
        case 1:
            for _ in range(50):
                await reader.read(1)
                await asyncio.sleep(0.2)
        case _:
            await reader.read(1)


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
    "chunks": _chunks,
    "mixed pipeline": _mixed_pipeline,
    "event streams": _event_streams,
}


def besiege(
    running: Running,
    *,
    seconds: float,
    clients: int = 40,
    quiet_seconds: float = QUIET_SECONDS,
) -> Siege:
    """Let so many hostile clients at once do their deeds in turn for a while, with pauses.

    They are in a process of their own, or the honest client would wait for them in its own, and of
    the lowest priority, for in truth they take CPU time of other machines.
    """
    siege = Siege(resident_before_kib=resident_kib(running))
    until, seed = time.monotonic() + seconds, 0
    while (left := until - time.monotonic()) > 0:
        asyncio.run(_honest(running, siege, quiet_seconds, siege.undisturbed_seconds))
        loud = min(left, LOUD_SECONDS)
        numbers = [str(number) for number in (running.port, loud, clients, seed)]
        command = ["nice", "-n", "19", sys.executable, "-W", "ignore", "-m"]
        with subprocess.Popen(
            [*command, "tests.hostile_clients", *numbers], stdout=subprocess.PIPE, cwd=ROOT
        ) as hostile:
            asyncio.run(_honest(running, siege, loud, siege.polls_seconds))
            siege.connections += Counter(json.loads(hostile.communicate()[0]))
        seed += clients
    return siege


def open_files_left(running: Running, redis_port: int, before: int) -> int:
    """Files that the API has open above those `before`, once what has ended is noticed."""
    for _ in range(200):
        left = open_files(running, redis_port) - before
        if left <= 0:
            return 0
        time.sleep(0.5)
    return left


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
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
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
