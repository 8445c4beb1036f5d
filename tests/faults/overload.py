"""`python -m tests.faults.overload --minutes 10`: twice as many requests as the worker can do.

Real Redis, real API, and a real worker whose denoising step sleeps, as a CPU does while a GPU
works: so the worker is full and the cores are left to what is measured. The capacity is measured
first, by clients that wait. Exit status 1 if a promise was broken. Figures go to out/overload.md.
"""

import argparse
import asyncio
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from service.cli.processes import RedisServer
from tests.faults.crowd import Crowd
from tests.faults.memory import FLAT_AFTER_MINUTES, FLAT_MIB, Memory
from tests.faults.polling import Poller, Polls
from tests.running import redis_client, until
from tests.stack import Service, nothing_left

SLOTS = 8
WAITING = 16
STEP_SECONDS = 0.1
TIMES_CAPACITY = 2
CAPACITY_SECONDS = 40.0
KEPT_SECONDS = 60
"""Finished jobs are forgotten so soon, or Redis would grow by their records all along."""
SAMPLE_SECONDS = 5.0
STUCK_SECONDS = 60.0

POLL_P99_SECONDS = 0.05
ETA_ERROR = 0.3
ROOM_IN_TIME = 0.95


@dataclass(frozen=True, slots=True)
class Place:
    """What is loaded: a service and its Redis."""

    service: Service
    redis: RedisServer


@contextmanager
def opened(folder: Path, waiting: int = WAITING) -> Iterator[Place]:
    """Redis, API and worker running, at most so many jobs waiting; ended with the block."""
    redis = RedisServer(folder / "redis")
    redis.start()
    settings = {
        "redis_url": redis.url,
        "storage_url": (folder / "storage").as_uri(),
        "worker_slots": SLOTS,
        "max_queued_jobs": waiting,
        "queue_deadline_seconds": KEPT_SECONDS,
        "job_retention_seconds": KEPT_SECONDS,
        "tombstone_seconds": KEPT_SECONDS,
        "sweep_seconds": KEPT_SECONDS / 2,
        "BENCH_STEP_SECONDS": STEP_SECONDS,
    }
    service = Service(settings, folder)
    try:
        yield Place(service.start(module="bench.sleeping_worker"), redis)
    finally:
        service.stop()
        redis.stop()


async def overload(
    place: Place, crowd: Crowd, rate: float, seconds: float
) -> tuple[int, dict[str, Memory]]:
    """Offer `rate` requests a second until all that were accepted have ended, or are stuck.

    How many were sent, and the memory of each process meanwhile.
    """
    memory = {"API": Memory(), "worker": Memory(), "Redis": Memory()}
    processes = (place.service.api, place.service.workers[0], place.redis)
    pids = [each.process.pid for each in processes]

    async def sample() -> None:
        while True:
            for each, pid in zip(memory.values(), pids, strict=True):
                each.sample(pid)
            await asyncio.sleep(SAMPLE_SECONDS)

    async def look() -> None:
        while True:
            crowd.look()
            await asyncio.sleep(1)

    beside = [asyncio.create_task(each()) for each in (sample, look)]
    sent = await crowd.offer(rate, seconds)
    for task in beside:
        task.cancel()
    return sent, memory


def settled(place: Place, crowd: Crowd) -> bool:
    """Whether all jobs come to their end, and leave nothing in the queue."""
    try:
        until(
            lambda: not crowd.look() and nothing_left(place.service),
            seconds=STUCK_SECONDS,
        )
    except AssertionError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Promise:
    """One line of the verdict."""

    what: str
    figure: str
    kept: bool


def judge(crowd: Crowd, polls: Polls, memory: dict[str, Memory], minutes: float) -> list[Promise]:
    """Hold what was seen against what is promised."""
    ends, refused, room = crowd.ends(), crowd.refused, crowd.room()
    answers = Counter(one.status for one in refused)
    in_time = sum(true <= told for told, true in room) / max(1, len(room))
    entered = [one.entered for one in refused if one.entered is not None]
    p50, p99 = polls.quantile(0.5), polls.quantile(0.99)
    promises = [
        Promise(
            "accepted jobs all succeed",
            ", ".join(f"{count} {status}" for status, count in ends.items()),
            set(ends) == {"succeeded"},
        ),
        Promise(
            "the others get 503 with `Retry-After`",
            ", ".join(f"{count} x {status}" for status, count in answers.items()),
            bool(refused) and all(one.status == 503 and one.retry_after for one in refused),
        ),
        Promise(
            "within `Retry-After` a place comes free",
            f"{in_time:.1%}; told {median(told for told, _ in room):.1f} s, true "
            f"{median(true for _, true in room):.1f} s (medians); {sum(entered)} of "
            f"{len(entered)} who came back then got in, among as many newcomers",
            in_time >= ROOM_IN_TIME,
        ),
        Promise(
            f"polls take at most {1e3 * POLL_P99_SECONDS:.0f} ms at p99",
            f"p50 {1e3 * p50:.1f} ms, p99 {1e3 * p99:.1f} ms, {polls.bad} bad",
            p99 < POLL_P99_SECONDS and not polls.bad,
        ),
        Promise(
            f"first estimates are off by less than {ETA_ERROR:.0%}",
            f"{crowd.eta_error():.0%} in the mean",
            crowd.eta_error() < ETA_ERROR,
        ),
        Promise(
            f"first positions are off by less than {ETA_ERROR:.0%}",
            f"{crowd.position_error():.0%} in the mean",
            crowd.position_error() < ETA_ERROR,
        ),
    ]
    for name, samples in memory.items():
        size, slope = samples.figures(0.5)
        judged = "" if minutes >= FLAT_AFTER_MINUTES else ", too short to judge"
        figure = f"{size:.0f} MiB, {slope:+.2f} MiB a minute{judged}"
        promises.append(
            Promise(f"memory is flat: {name}", figure, bool(judged) or slope < FLAT_MIB)
        )
    return promises


def main() -> int:
    """Overload the service for as long as the command line says and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=Path("out/overload.md"))
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        opened(Path(name)) as place,
        redis_client(place.redis.url) as redis,
        Poller(place.service.api.url) as poller,
    ):
        crowd = Crowd(place.service.api.url, redis, poller)
        capacity = asyncio.run(crowd.capacity(2 * SLOTS, CAPACITY_SECONDS))
        rate = TIMES_CAPACITY * capacity
        sent, memory = asyncio.run(overload(place, crowd, rate, 60 * options.minutes))
        polls = poller.end()
        empty = settled(place, crowd)
    promises = [
        *judge(crowd, polls, memory, options.minutes),
        Promise("the queue ends empty", "empty" if empty else "jobs are left", empty),
    ]
    kept = all(promise.kept for promise in promises)
    lines = [
        f"# Overload: {options.minutes:g} minutes at {TIMES_CAPACITY} times the capacity",
        "",
        (
            f"{os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}. One worker with {SLOTS} slots "
            f"does {capacity:.2f} jobs a second; at most {WAITING} wait. {rate:.2f} requests a "
            f"second, {sent} in all, beside them {len(polls.seconds)} polls."
        ),
        "",
        "| promise | figure | kept |",
        "|---|---|---|",
        *(f"| {each.what} | {each.figure} | {'yes' if each.kept else 'NO'} |" for each in promises),
        "",
        "Every promise was kept." if kept else "A promise was broken.",
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out.read_text())  # noqa: T201  a report for a person
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
