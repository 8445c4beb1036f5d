"""`python -m tests.faults.polling URL`: polls jobs at an even pace and times the answers.

A process of its own, so that no other client's work delays its clock. It reads ids of jobs from
standard input, polls those that came last, and prints what it saw when the input ends.
"""

import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from bench.http.load import answer, request

PER_SECOND = 50
POLLED = 40
"""Jobs that are polled, the newest: some wait, some run, some have ended."""


@dataclass(frozen=True, slots=True)
class Polls:
    """What the poller saw: seconds of every answer, sorted, and how many were no 200."""

    seconds: tuple[float, ...]
    bad: int

    def quantile(self, share: float) -> float:
        """Seconds within which `share` of the answers came."""
        return self.seconds[min(int(share * len(self.seconds)), len(self.seconds) - 1)]


class Poller:
    """The process, as whoever has it started sees it."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.polling", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def follow(self, job_id: str) -> None:
        """Poll this job from now on, until newer ones take its place."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{job_id}\n")
        self._process.stdin.flush()

    def end(self) -> Polls:
        """Stop, and tell what was seen."""
        out, _ = self._process.communicate(timeout=60)
        seen = json.loads(out)
        return Polls(tuple(sorted(seen["seconds"])), seen["bad"])


class _Polling:
    def __init__(self, url: str) -> None:
        self._url = url
        self._ids: deque[str] = deque(maxlen=POLLED)
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
        self._ended = threading.Event()
        self.seconds: list[float] = []
        self.bad = 0

    def read_ids(self) -> None:
        """Take ids in until there are no more; on a thread of its own."""
        for line in sys.stdin:
            self._ids.append(line.strip())
        self._ended.set()

    async def run(self) -> None:
        """Send at an even pace, whether the answers come in time or not."""
        due, polls = time.perf_counter(), set()
        while not self._ended.is_set():
            due += 1 / PER_SECOND
            await asyncio.sleep(due - time.perf_counter())
            if self._ids:
                polls.add(task := asyncio.create_task(self._poll(random.choice(self._ids))))
                task.add_done_callback(polls.discard)
        await asyncio.gather(*polls)

    async def _poll(self, job_id: str) -> None:
        message = request("GET", f"{self._url}/jobs/{job_id}")
        began = time.perf_counter()
        try:
            link = self._idle.popleft() if self._idle else await self._connect()
            link[1].write(message)
            status, keep = await answer(link[0])
        except (OSError, EOFError):
            self.bad += 1
            return
        self.seconds.append(time.perf_counter() - began)
        self.bad += status != 200
        if keep:
            self._idle.append(link)
        else:
            link[1].close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self._url)
        return await asyncio.open_connection(parts.hostname, parts.port)


def main() -> None:
    """Poll until standard input ends."""
    polling = _Polling(sys.argv[1])
    threading.Thread(target=polling.read_ids, daemon=True).start()
    asyncio.run(polling.run())
    json.dump({"seconds": polling.seconds, "bad": polling.bad}, sys.stdout)


if __name__ == "__main__":
    main()
