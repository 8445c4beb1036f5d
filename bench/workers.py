"""`python -m bench.workers`: throughput of 1, 2 and 4 workers whose step only sleeps.

Real Redis, real queue, real worker processes; the jobs are put in at once. Anything but a straight
line is what workers cost each other. Writes out/bench/workers.md.
"""

import argparse
import hashlib
import io
import os
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from PIL import Image
from redis import Redis

from bench.http.servers import Server
from service.cli import processes
from service.cli.processes import RedisServer
from service.core import redis_keys, worker_registry
from service.core.job import Job, Status
from service.core.param_types import SchedulerName, StoredUpload
from service.core.params import GenerateRequest
from service.core.queue import enqueue, open_queue
from service.core.settings import Settings
from service.core.storage import Storage
from service.core.transitions import Transitions

OUT: Final = Path("out/bench")
STEPS: Final = 20


def request(storage: Storage, job_id: str) -> GenerateRequest:
    """Store a small image prompt and ask for one picture of it."""
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "PNG")
    key = redis_keys.upload(job_id, "image-0.png")
    storage.put(key, out.getvalue(), "image/png")
    digest = hashlib.sha256(out.getvalue()).hexdigest()
    prompt = StoredUpload(key=key, sha256=digest, pixels_sha256=digest, width=64, height=64)
    return GenerateRequest(
        model="shapes",
        adapter="base",
        image=(prompt,),
        image_weights=(1.0,),
        ip_scale=1,
        width=128,
        height=128,
        steps=STEPS,
        guidance_scale=7.5,
        scheduler=SchedulerName.DDIM,
        seed=1,
    )


def run(workers: int, *, slots: int, waves: int, step_seconds: float) -> tuple[float, float]:
    """Jobs a second of so many workers, from the first job's start to the last one's end.

    Beside it the CPU seconds that Redis spent on each job.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        server = RedisServer(folder / "redis")
        server.start()
        stack.callback(server.stop)
        settings = {
            "IMAGEPROMPT_REDIS_URL": server.url,
            "IMAGEPROMPT_STORAGE_URL": (folder / "storage").as_uri(),
            "IMAGEPROMPT_WORKER_METRICS_PORT": "0",
            "IMAGEPROMPT_WORKER_SLOTS": str(slots),
            "IMAGEPROMPT_LOG_LEVEL": "WARNING",
            "BENCH_STEP_SECONDS": str(step_seconds),
        }
        for number in range(workers):
            process = processes.spawn(
                [sys.executable, "-m", "bench.sleeping_worker"],
                log=folder / f"{number}.log",
                environment=os.environ | settings,
            )
            stack.callback(processes.end, process, grace_seconds=30)
        redis = stack.enter_context(Redis.from_url(server.url))
        while redis.zcard(redis_keys.WORKERS) < workers:
            time.sleep(0.2)
        time.sleep(worker_registry.TTL_SECONDS / 5)
        jobs = workers * slots * waves
        watched = Server("redis", server.url, server.process.pid)
        before = watched.cpu_seconds()
        rate = _work_off(redis, folder, jobs=jobs)
        return rate, (watched.cpu_seconds() - before) / jobs


def _work_off(redis: Redis, folder: Path, *, jobs: int) -> float:
    storage = Storage.open((folder / "storage").as_uri(), presigned_url_seconds=60)
    defaults = Settings()
    queue = open_queue(defaults.queue, redis)
    transitions = Transitions(
        redis,
        retention_seconds=defaults.job_retention_seconds,
        tombstone_seconds=defaults.tombstone_seconds,
        max_attempts=defaults.max_attempts,
    )
    ids = [str(uuid.uuid4()) for _ in range(jobs)]
    requests = [request(storage, job_id) for job_id in ids]
    for job_id, asked in zip(ids, requests, strict=True):
        job = Job(
            id=job_id, owner="bench", status=Status.QUEUED, request=asked, created_at=time.time()
        )
        enqueue(queue, transitions, job)
    ends = []
    for job_id in ids:
        while not (record := redis.hgetall(redis_keys.job(job_id))).get(b"completed_at"):
            time.sleep(0.2)
        if record[b"status"] != b"succeeded":
            raise RuntimeError(f"a job ended as {record[b'status']!r}: {record.get(b'error')!r}")
        ends.append(record)
    first = min(float(record[b"started_at"]) for record in ends)
    last = max(float(record[b"completed_at"]) for record in ends)
    return jobs / (last - first)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--waves", type=int, default=8, help="jobs for each slot")
    parser.add_argument("--step-seconds", type=float, default=0.1)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], metavar="N")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    lines = [
        (
            f"{options.slots} slots a worker, {STEPS} steps of {options.step_seconds} s, "
            f"{options.waves} jobs a slot, {os.cpu_count()} cores."
        ),
        "",
        "| workers | jobs a second | of linear | Redis' CPU ms a job |",
        "|---|---|---|---|",
    ]
    of_one = 0.0
    for workers in options.workers:
        rate, redis_seconds = run(
            workers, slots=options.slots, waves=options.waves, step_seconds=options.step_seconds
        )
        of_one = of_one or rate / workers
        share = rate / (of_one * workers)
        lines.append(f"| {workers} | {rate:.2f} | {share:.1%} | {1e3 * redis_seconds:.1f} |")
        print(lines[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "workers.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
