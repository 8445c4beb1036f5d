"""Two that want to end the same job at the same time."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from redis import Redis

from service.core import redis_keys
from service.core.job import JobMetrics, Status, StoredImage
from service.core.queue import connect
from service.core.transitions import Claim, Transitions

RACES = 1000
IMAGE = StoredImage(
    key="results/a/0.png", content_type="image/png", width=8, height=8, seed=1, sha256="ab" * 32
)


def test_thousand_races_of_cancel_and_finish_have_one_end_each(
    add_job, read, redis: Redis, redis_url: str
) -> None:
    clients = [connect(redis_url) for _ in range(2)]
    sides = [
        Transitions(client, retention_seconds=60, tombstone_seconds=60, max_attempts=3)
        for client in clients
    ]
    job = add_job()
    fields = redis.hgetall(redis_keys.job(job.id))
    ends: Counter[Status] = Counter()
    gate = Barrier(2)

    def finish(claim: Claim) -> bool:
        gate.wait()
        return sides[0].succeed(claim, (IMAGE,), JobMetrics(), 4)

    def cancel(claim: Claim) -> Status | None:
        gate.wait()
        return sides[1].cancel(claim.job_id)

    with ThreadPoolExecutor(2) as pool:
        for number in range(RACES):
            claim = Claim(f"race-{number}", "token")
            redis.hset(redis_keys.job(claim.job_id), mapping={**fields, "id": claim.job_id})
            assert sides[0].claim(claim, "worker")
            finished, state = pool.submit(finish, claim), pool.submit(cancel, claim)
            won, told = finished.result(), state.result()
            end = read(claim.job_id)
            assert won is (end.status is Status.SUCCEEDED)
            assert told is end.status
            assert bool(end.images) is (end.status is Status.SUCCEEDED)
            done = [
                e
                for _, e in redis.xrange(redis_keys.events(claim.job_id))
                if e[b"event"] == b"done"
            ]
            assert len(done) == 1
            ends[end.status] += 1
    for client in clients:
        client.close()
    assert sum(ends.values()) == RACES
    assert set(ends) <= {Status.SUCCEEDED, Status.CANCELED}
