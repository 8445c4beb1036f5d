"""What a power cut may take with `appendfsync everysec`: the last second, and never half a job."""

import random
from pathlib import Path
from typing import Literal
from uuid import uuid4

import pytest
from redis import Redis

from service.cli.processes import RedisServer
from service.core import redis_keys
from service.core.job import Job, Status
from service.core.queue import connect, enqueue, open_queue
from service.core.transitions import Claim, Transitions
from tests.running import until


def append_only_file(folder: Path) -> Path:
    """Where this version of Redis writes (one file before 7.0, a folder of several since)."""
    found = [*folder.glob("appendonly.aof"), *folder.glob("appendonlydir/*.incr.aof")]
    return found[0]


def wait_for_writes(redis: Redis) -> None:
    """Until the kernel has all: on a slow disk `everysec` holds writes back during an fsync."""
    until(lambda: redis.info("persistence")["aof_buffer_length"] == 0, what="the last write")


@pytest.mark.parametrize("seed", range(4))
def test_cut_tail_loses_the_newest_jobs_whole_and_no_older_one(
    tmp_path, add_job, seed: int
) -> None:
    pattern = add_job()
    server = RedisServer(tmp_path / "redis")
    server.start()
    redis = connect(server.url)
    queue = open_queue("test", redis)
    transitions = Transitions(redis, retention_seconds=60, tombstone_seconds=60, max_attempts=3)
    jobs = [
        Job(
            id=str(uuid4()),
            owner="me",
            status=Status.QUEUED,
            request=pattern.request,
            created_at=float(number),
        )
        for number in range(12)
    ]
    for job in jobs:
        enqueue(queue, transitions, job)
        transitions.claim(Claim(job.id, "token"), "worker")
    wait_for_writes(redis)
    server.process.kill()
    server.process.wait()

    file = append_only_file(tmp_path / "redis")
    size = file.stat().st_size
    with file.open("r+b") as tail:
        tail.truncate(random.Random(seed).randrange(size // 4, size))
    server.start()
    kept = []
    for job in jobs:
        record, rq_job = redis.exists(redis_keys.job(job.id)), redis.exists(f"rq:job:{job.id}")
        waiting = job.id in queue.job_ids
        assert record == rq_job == waiting, "half a job is left"
        kept.append(bool(record))
    assert kept == sorted(kept, reverse=True), "an older job is gone and a newer one is not"
    assert any(kept)
    redis.close()
    server.stop()


@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_killed_process_loses_nothing_that_was_written(
    tmp_path, fsync: Literal["everysec", "always"]
) -> None:
    """With `always` that is all that was answered."""
    server = RedisServer(tmp_path / "redis", fsync=fsync)
    server.start()
    with Redis.from_url(server.url) as redis:
        for number in range(200):
            redis.set(f"key-{number}", number)
        if fsync == "everysec":
            wait_for_writes(redis)
        server.process.kill()
        server.process.wait()
        server.start()
        assert redis.dbsize() == 200
    server.stop()
