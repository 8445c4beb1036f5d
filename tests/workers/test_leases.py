"""No job is lost or doubled, whenever its worker dies."""

from redis import Redis


def test_job_of_a_worker_that_died_is_returned_once(add_job, queue, leases, later) -> None:
    job = add_job()
    assert leases.dequeue(1) == job.id
    assert leases.take(job.id)
    later(5)
    assert leases.return_expired() == []
    later(2)
    assert leases.return_expired() == [job.id]
    assert leases.return_expired() == []
    assert queue.job_ids == [job.id]


def test_returned_job_goes_to_the_front(add_job, queue, leases, later) -> None:
    first, second = add_job(), add_job()
    leases.take(leases.dequeue(1))
    later(7)
    leases.return_expired()
    assert queue.job_ids == [first.id, second.id]


def test_renewed_lease_is_left_alone(add_job, queue, leases, later) -> None:
    add_job()
    lease = leases.take(leases.dequeue(1))
    for _ in range(4):
        later(5)
        leases.renew([lease])
        assert leases.return_expired() == []
    assert queue.job_ids == []


def test_lost_lease_cannot_be_renewed(add_job, queue, leases, later) -> None:
    job = add_job()
    lease = leases.take(leases.dequeue(1))
    later(7)
    leases.return_expired()
    leases.renew([lease])
    leases.requeue(lease)
    assert queue.job_ids == [job.id]


def test_worker_that_wakes_late_does_not_take_a_job_that_was_returned(
    add_job, queue, leases
) -> None:
    job = add_job()
    assert leases.dequeue(1) == job.id
    leases.undo_dequeue(job.id)
    assert leases.take(job.id) is None
    assert queue.job_ids == [job.id]


def test_finished_job_leaves_no_keys_of_rq(add_job, redis: Redis, leases) -> None:
    job = add_job()
    lease = leases.take(leases.dequeue(1))
    leases.renew([lease])
    leases.end(lease)
    left = [key for key in redis.keys("rq:*") if job.id.encode() in key]
    assert left == []
    assert redis.zcard("rq:wip:test") == 0
    assert redis.llen("rq:queue:test:intermediate") == 0


def test_ids_that_nobody_can_read_are_thrown_away(redis: Redis, leases) -> None:
    redis.rpush("rq:queue:test", b"\xff\xfe")
    redis.zadd("rq:wip:test", {"no-colon": 1, b"\xff:\xff": 1})
    assert leases.dequeue(1) is None
    assert leases.dequeued() == []
    assert leases.return_expired() == []
    assert redis.zcard("rq:wip:test") == 0
