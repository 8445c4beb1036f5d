"""`python -m bench.costs`: what a job costs the service around its model; writes docs/costs.md.

A whole service (API, Redis, storage folder) with a worker whose steps only sleep, so that all CPU
time that is counted is the service's own. Each kind of job is posted, waited for and its pictures
fetched, as an app does it. What the processes use while nothing happens is subtracted.
"""

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from PIL import Image
from redis import Redis

from bench.http.__main__ import photograph
from bench.http.servers import Server
from service.cli import processes
from service.cli.processes import RedisServer
from service.core.settings import Settings

PAGE: Final = Path("docs/costs.md")
STEP_SECONDS: Final = 0.05
AT_ONCE: Final = 8
IDLE_SECONDS: Final = 4.0
MILLION: Final = 1_000_000
MONTH_SECONDS: Final = 30 * 86_400
PEAK: Final = 4
"""Of the busiest hour to the mean."""
BUSY: Final = 0.6
"""Of a core or a GPU that is planned for."""
GPU_SECONDS: Final = (0.1, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of job: what is posted, and how many pictures come of it."""

    name: str
    fields: Mapping[str, object]
    files: Sequence[tuple[str, bytes]]
    pictures: int = 1


@dataclass(frozen=True, slots=True)
class Cost:
    """What one job of a kind costs. CPU time in milliseconds."""

    api_ms: float
    worker_ms: float
    redis_ms: float
    redis_bytes: float
    stored_bytes: float

    @property
    def service_ms(self) -> float:
        """Of the API and the worker."""
        return self.api_ms + self.worker_ms


@dataclass(frozen=True, slots=True)
class Service:
    """The processes of a whole service, and where it stores."""

    api: Server
    worker: Server
    redis: Server
    client: Redis
    folder: Path

    def used(self) -> tuple[float, float, float, float, float]:
        """CPU seconds of API, worker and Redis, bytes of Redis and of the storage, so far."""
        stored = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        memory: Any = self.client.info("memory")
        return (
            self.api.cpu_seconds(),
            self.worker.cpu_seconds(),
            self.redis.cpu_seconds(),
            float(memory["used_memory"]),
            float(stored),
        )


def kinds() -> list[Kind]:
    """The kinds that are measured."""
    photo = photograph()
    small = io.BytesIO()
    Image.open(io.BytesIO(photo)).resize((128, 128)).save(small, "PNG")
    outline = Path("examples/triangle-outline.png").read_bytes()
    return [
        Kind("30 steps, a photograph of 300 kB", {"steps": 30}, [("image", photo)]),
        Kind("4 steps, a photograph of 300 kB", {"steps": 4}, [("image", photo)]),
        Kind("30 steps, a PNG of 128 x 128", {"steps": 30}, [("image", small.getvalue())]),
        Kind(
            "30 steps, a photograph and a control map",
            {"steps": 30},
            [("image", photo), ("control_image", outline)],
        ),
        Kind("30 steps, four pictures", {"steps": 30, "num_images": 4}, [("image", photo)], 4),
    ]


def start(stack: ExitStack, folder: Path) -> Service:
    """Start the service and wait until it is ready."""
    redis = RedisServer(folder / "redis")
    redis.start()
    stack.callback(redis.stop)
    port = processes.free_port()
    environment = os.environ | {
        "IMAGEPROMPT_REDIS_URL": redis.url,
        "IMAGEPROMPT_PORT": str(port),
        "IMAGEPROMPT_STORAGE_URL": (folder / "storage").as_uri(),
        "IMAGEPROMPT_WORKER_METRICS_PORT": "0",
        "IMAGEPROMPT_WORKER_SLOTS": str(AT_ONCE),
        "BENCH_STEP_SECONDS": str(STEP_SECONDS),
    }
    pids = []
    for module in ("service", "bench.sleeping_worker"):
        log = folder / f"{module}.log"
        process = processes.spawn([sys.executable, "-m", module], log=log, environment=environment)
        stack.callback(processes.end, process, grace_seconds=30)
        pids.append(process.pid)
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 180
    while time.monotonic() < until:
        try:
            if httpx.get(f"{url}/healthz/ready").is_success:
                break
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    client = stack.enter_context(Redis.from_url(redis.url))
    return Service(
        Server("api", url, pids[0]),
        Server("worker", url, pids[1]),
        Server("redis", redis.url, redis.process.pid),
        client,
        folder / "storage",
    )


def once(client: httpx.Client, kind: Kind, seed: int) -> None:
    """One job as an app does it: post, wait for the end, fetch the pictures."""
    files = [(field, ("upload", data)) for field, data in kind.files]
    fields = {name: str(value) for name, value in kind.fields.items()} | {"seed": str(seed)}
    job = client.post("/generate", data=fields, files=files).raise_for_status().json()
    while job["status"] in ("queued", "processing"):
        answer = client.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=30"})
        job = answer.raise_for_status().json()
    if job["status"] != "succeeded":
        raise RuntimeError(f"a job of the bench ended as {job['status']}: {job['error']}")
    for number in range(kind.pictures):
        client.get(f"/jobs/{job['id']}/images/{number}").raise_for_status()


def measure(service: Service, kind: Kind, *, jobs: int) -> Cost:
    """The cost of a job, without what the processes use while nothing happens."""
    with httpx.Client(base_url=service.api.url, timeout=120) as client:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda seed: once(client, kind, seed), range(AT_ONCE)))  # warm
            time.sleep(1)
            began, idle = time.monotonic(), service.used()
            time.sleep(IDLE_SECONDS)
            rest = [
                (b - a) / (time.monotonic() - began)
                for a, b in zip(idle, service.used(), strict=True)
            ]
            began, before = time.monotonic(), service.used()
            list(threads.map(lambda seed: once(client, kind, seed), range(jobs)))
        lasted = time.monotonic() - began
        after = service.used()
    spent = [
        (b - a - lasted * unused) / jobs
        for a, b, unused in zip(before, after, (*rest[:3], 0.0, 0.0), strict=True)
    ]
    return Cost(*(1e3 * seconds for seconds in spent[:3]), *spent[3:])


def median(costs: Sequence[Cost]) -> Cost:
    """Of each figure by itself."""

    def of(figure: Callable[[Cost], float]) -> float:
        return statistics.median(map(figure, costs))

    return Cost(
        of(lambda cost: cost.api_ms),
        of(lambda cost: cost.worker_ms),
        of(lambda cost: cost.redis_ms),
        of(lambda cost: cost.redis_bytes),
        of(lambda cost: cost.stored_bytes),
    )


TEXT: Final = """\
# What it costs

Made by `make bench-costs`, which writes this page; nothing here is written by hand.

## A job, without its model

A whole service on {cores} cores shared with other work, with a worker whose steps sleep
{step_seconds:g} s, {at_once} jobs at once; {jobs} jobs of each kind, medians of {rounds} rounds.
CPU time of all processes, decoders included, less what they use while nothing happens. Each job is
posted, waited for with `Prefer: wait`, and its pictures of 128 x 128 are fetched; a larger picture
costs its own encoding (12 ms for a PNG of 1024 x 1024). Redis and the storage keep a job for a day.

| kind of job | API ms | worker ms | both | Redis ms | Redis kB | stored kB |
|---|---|---|---|---|---|---|
{rows}

## A million pictures a month

That is {mean:.2f} a second, and {peak:.1f} in a busy hour of {factor} times the mean, with cores
and GPUs {busy:.0%} busy then. For the first kind of job:

| part | needs |
|---|---|
{needs}

How long a GPU takes a picture is measured by `make bench-gpu` on the GPU at hand.
"""


def page(costs: Mapping[str, Cost], *, jobs: int, rounds: int) -> str:
    """docs/costs.md."""
    rows = [
        f"| {name} | {cost.api_ms:.1f} | {cost.worker_ms:.1f} | {cost.service_ms:.1f} "
        f"| {cost.redis_ms:.1f} | {cost.redis_bytes / 1e3:.1f} | {cost.stored_bytes / 1e3:.0f} |"
        for name, cost in costs.items()
    ]
    return TEXT.format(
        cores=os.cpu_count(),
        step_seconds=STEP_SECONDS,
        at_once=AT_ONCE,
        jobs=jobs,
        rounds=rounds,
        rows="\n".join(rows),
        mean=MILLION / MONTH_SECONDS,
        peak=PEAK * MILLION / MONTH_SECONDS,
        factor=PEAK,
        busy=BUSY,
        needs="\n".join(_needs(next(iter(costs.values())))),
    )


def _needs(cost: Cost) -> list[str]:
    mean = MILLION / MONTH_SECONDS
    peak = PEAK * mean
    days = Settings().job_retention_seconds / 86_400
    kept = mean * 86_400 * days
    gpus = "; ".join(f"{peak * took / BUSY:.1f} where one takes {took:g} s" for took in GPU_SECONDS)
    stored = f"{kept * cost.stored_bytes / 1e9:.0f} GB, and the pictures at their size"
    return [
        f"| GPUs, by their seconds a picture | {gpus} |",
        f"| API cores | {peak * cost.api_ms / 1e3 / BUSY:.2f} |",
        f"| worker cores beside the GPUs | {peak * cost.worker_ms / 1e3 / BUSY:.2f} |",
        f"| Redis cores | {peak * cost.redis_ms / 1e3 / BUSY:.3f} |",
        f"| Redis memory, jobs kept {days:g} day | {kept * cost.redis_bytes / 1e6:.0f} MB |",
        f"| storage, jobs kept {days:g} day | {stored} |",
    ]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=32, help="of each kind in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    found: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        service = start(stack, Path(folder))
        for _ in range(options.rounds):
            for kind in kinds():
                found.setdefault(kind.name, []).append(measure(service, kind, jobs=options.jobs))
                print(kind.name, found[kind.name][-1], flush=True)
    costs = {name: median(several) for name, several in found.items()}
    text = page(costs, jobs=options.jobs, rounds=options.rounds)
    options.page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
