"""The load under which faults happen, and the judge of what came of it.

Every request is one of a few whose right picture is known from a run without faults.
"""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import httpx

from tests.stack import FINAL, Service, picture, pixels

DISTINCT = 12
STUCK_SECONDS = 60
TOLERANCE = 1
"""Of 255: rounding may differ with the rows that share a batch."""


@dataclass
class Tally:
    """What became of the jobs that were answered 202."""

    jobs: int = 0
    lost: int = 0
    wrong: int = 0
    stuck: int = 0
    slowest_seconds: float = 0.0

    def __iadd__(self, other: "Tally") -> Self:
        self.jobs += other.jobs
        self.lost += other.lost
        self.wrong += other.wrong
        self.stuck += other.stuck
        self.slowest_seconds = max(self.slowest_seconds, other.slowest_seconds)
        return self


def fields(number: int) -> dict[str, object]:
    """Request `number`, a pure function of it."""
    kind = number % DISTINCT
    size = 128 if kind % 2 else 64
    return {
        "image": picture(20 * kind),
        "seed": 100 + kind,
        "steps": 10 + 5 * (kind % 4),
        "width": size,
        "height": size,
        "prompt": "a star" if kind % 3 == 0 else "",
    }


class Judge:
    """Knows the right picture of every request."""

    def __init__(self, service: Service) -> None:
        ids = [service.submit(**fields(kind)) for kind in range(DISTINCT)]
        self._right = [pixels(service.image(service.succeeded(job)["id"])) for job in ids]

    def judge(self, service: Service, sent: dict[str, int]) -> Tally:
        """Wait for every job of `sent` (id to request number) and compare its picture."""
        tally, began = Tally(jobs=len(sent)), time.monotonic()
        for job_id, number in sent.items():
            job = self._wait(service, job_id, began + STUCK_SECONDS)
            if job is None:
                tally.stuck += 1
            elif job["status"] != "succeeded":
                tally.lost += 1
            elif not self._is_right(service.image(job_id), number):
                tally.wrong += 1
        tally.slowest_seconds = time.monotonic() - began
        return tally

    def _is_right(self, data: bytes, number: int) -> bool:
        right, got = self._right[number % DISTINCT], pixels(data)
        return len(right) == len(got) and all(
            abs(a - b) <= TOLERANCE for a, b in zip(right, got, strict=True)
        )

    @staticmethod
    def _wait(service: Service, job_id: str, until: float) -> dict[str, object] | None:
        while time.monotonic() < until:
            try:
                answer = service.client.get(f"/jobs/{job_id}")
            except httpx.HTTPError:
                time.sleep(0.2)
                continue
            if answer.status_code == httpx.codes.NOT_FOUND:
                return {"status": "lost"}
            if answer.is_success and (job := answer.json())["status"] in FINAL:
                return dict(job)
            time.sleep(0.1)
        return None


def send(service: Service, count: int, *, clients: int = 4) -> dict[str, int]:
    """Send `count` requests at once; ids of those answered 202 with their numbers.

    A request that is refused or cut off is no job: its client was told so.
    """
    first = random.randrange(DISTINCT)

    def one(number: int) -> tuple[str, int] | None:
        try:
            answer = service.post(**fields(number))
        except httpx.HTTPError:
            return None
        accepted = answer.status_code == httpx.codes.ACCEPTED
        return (answer.json()["id"], number) if accepted else None

    with ThreadPoolExecutor(clients) as pool:
        return dict(filter(None, pool.map(one, range(first, first + count))))
