"""Clients that outnumber the workers: they come at an even pace, whatever the answers are.

What they were told (estimates, positions, when to come back) is noted beside what came of it.
"""

import asyncio
import random
import time
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import httpx
from redis import Redis

from service.core import redis_keys
from tests.faults.polling import Poller
from tests.running import KEEP
from tests.stack import FINAL, picture

STEPS = (10, 30)
"""Jobs differ, so that they end one by one and not in waves."""
WARM_PART = 0.25
COME_BACK = 0.25
"""So many of the refused come back once, when they were told to."""
IMAGE = picture()


@dataclass(slots=True)
class Accepted:
    """A job: what its client was told at `at` (epoch), and what its record says in the end."""

    at: float
    eta_seconds: float | None
    position: int | None
    record: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """The last state that was seen."""
        return self.record.get("status", "lost")

    def time(self, name: str) -> float:
        """A moment of the record (epoch); infinity where it has not come."""
        return float(self.record.get(name, "inf"))

    def was_ahead_of(self, other: "Accepted") -> bool:
        """Whether this one was in the queue before `other` when that one was told its position."""
        earlier = self.time("created_at") < other.time("created_at")
        return earlier and self.time("started_at") > other.at


@dataclass(frozen=True, slots=True)
class Refused:
    """An answer that was no 202, at `at` (epoch); status 0: there was none."""

    at: float
    status: int
    retry_after: str | None
    entered: bool | None
    """Whether the client that came back got in; `None` where it did not come back."""


class Crowd:
    """Sends requests and follows what was accepted."""

    def __init__(self, url: str, redis: Redis, poller: Poller | None = None) -> None:
        self.accepted: dict[str, Accepted] = {}
        self.refused: list[Refused] = []
        self._url = url
        self._redis = redis
        self._poller = poller
        self._open: set[str] = set()

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self._url, timeout=180, limits=KEEP)

    async def capacity(self, at_once: int, seconds: float) -> float:
        """Jobs a second that the workers do when `at_once` are always out."""
        began, ends = time.monotonic(), []

        async def client(http: httpx.AsyncClient) -> None:
            while time.monotonic() < began + seconds:
                answer = await _post(http, {"Prefer": "wait=60"})
                assert answer.json()["status"] == "succeeded", answer.text
                ends.append(time.monotonic())

        async with self._client() as http:
            await asyncio.gather(*(client(http) for _ in range(at_once)))
        counted = [end for end in ends if began + WARM_PART * seconds < end < began + seconds]
        return len(counted) / ((1 - WARM_PART) * seconds)

    async def offer(self, rate: float, seconds: float) -> int:
        """Send `rate` requests a second for a while; how many. Ends when all are answered."""
        began, sent, tasks = time.monotonic(), 0, set()
        async with self._client() as http:
            while (due := began + sent / rate) < began + seconds:
                await asyncio.sleep(due - time.monotonic())
                tasks.add(task := asyncio.create_task(self._visit(http)))
                task.add_done_callback(tasks.discard)
                sent += 1
            await asyncio.gather(*tasks)
        return sent

    async def _visit(self, http: httpx.AsyncClient) -> None:
        status, wait = await self._try(http)
        if status == httpx.codes.ACCEPTED:
            return
        at, entered = time.time(), None
        if wait is not None and random.random() < COME_BACK:
            await asyncio.sleep(float(wait))
            entered = (await self._try(http))[0] == httpx.codes.ACCEPTED
        self.refused.append(Refused(at, status, wait, entered))

    async def _try(self, http: httpx.AsyncClient) -> tuple[int, str | None]:
        """Send one request; status (0 without an answer) and `Retry-After` of its answer."""
        try:
            answer = await _post(http)
        except httpx.HTTPError:
            return 0, None
        if answer.status_code == httpx.codes.ACCEPTED:
            job: dict[str, Any] = answer.json()
            self.accepted[job["id"]] = Accepted(
                time.time(), job["eta_seconds"], job["queue_position"]
            )
            self._open.add(job["id"])
            if self._poller is not None:
                self._poller.follow(job["id"])
        return answer.status_code, answer.headers.get("retry-after")

    def look(self) -> bool:
        """Read the records of what is still open; whether anything is."""
        ids = list(self._open)
        with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in ids:
                pipeline.hgetall(redis_keys.job(job_id))
            for job_id, record in zip(ids, pipeline.execute(), strict=True):
                self.accepted[job_id].record = record
                if not record or record["status"] in FINAL:
                    self._open.discard(job_id)
        return bool(self._open)

    def ends(self) -> Counter[str]:
        """How the accepted jobs ended; one without a record is `lost`."""
        return Counter(job.status for job in self.accepted.values())

    def eta_error(self) -> float:
        """Mean of how far first estimates were off, as a share of what came true."""
        told = [
            (job.eta_seconds, max(0.1, job.time("completed_at") - job.at))
            for job in self.accepted.values()
            if job.eta_seconds is not None and job.status == "succeeded"
        ]
        return mean(abs(eta - true) / true for eta, true in told)

    def position_error(self) -> float:
        """Mean of how far first positions were off, as a share of the mean true position."""
        told, true = [], []
        for job in self.accepted.values():
            if job.position is not None:
                told.append(job.position)
                true.append(sum(each.was_ahead_of(job) for each in self.accepted.values()))
        return sum(abs(a - b) for a, b in zip(told, true, strict=True)) / max(1, sum(true))

    def room(self) -> list[tuple[float, float]]:
        """Of every refusal: seconds it told to wait, and seconds until a job left the queue."""
        starts = sorted(job.time("started_at") for job in self.accepted.values())
        found = []
        for one in self.refused:
            at = bisect_right(starts, one.at)
            if one.retry_after is not None and at < len(starts):
                found.append((float(one.retry_after), starts[at] - one.at))
        return found


async def _post(http: httpx.AsyncClient, headers: dict[str, str] | None = None) -> httpx.Response:
    return await http.post(
        "/generate",
        files={"image": ("a.png", IMAGE, "image/png")},
        data={"steps": str(random.randint(*STEPS))},
        headers=headers,
    )
