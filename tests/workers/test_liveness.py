"""A hung worker is ended, and the jobs of a dead one are returned."""

from workers.liveness import EXIT_STATUS, LeaseReaper, Watchdog


class Engine:
    alive = True
    last_step_at = 0.0


def test_hung_engine_ends_the_worker() -> None:
    left: list[int] = []
    now = [0.0]
    watchdog = Watchdog(Engine(), step_timeout_seconds=10, clock=lambda: now[0], leave=left.append)
    for second in range(1, 11):
        now[0] = second
        watchdog()
    assert (watchdog.healthy(), left) == (True, [])
    now[0] = 11
    watchdog()
    assert (watchdog.healthy(), left) == (False, [EXIT_STATUS])


def test_worker_that_was_paused_as_a_whole_goes_on() -> None:
    left: list[int] = []
    now = [0.0]
    watchdog = Watchdog(Engine(), step_timeout_seconds=10, clock=lambda: now[0], leave=left.append)
    now[0] = 100
    watchdog()
    assert (watchdog.healthy(), left) == (True, [])
    for second in range(101, 112):
        now[0] = second
        watchdog()
    assert left == [EXIT_STATUS]


def test_dead_engine_ends_the_worker() -> None:
    left: list[int] = []
    engine = Engine()
    engine.alive = False
    Watchdog(engine, step_timeout_seconds=10, clock=lambda: 0, leave=left.append)()
    assert left == [EXIT_STATUS]


def test_job_of_a_worker_that_died_before_its_lease_is_returned(add_job, queue, leases) -> None:
    job = add_job()
    now = [0.0]
    reap = LeaseReaper(leases, clock=lambda: now[0])
    assert leases.dequeue(1) == job.id
    for seconds in (0, 4, 6):
        now[0] = seconds
        reap()
    assert queue.job_ids == []
    now[0] = 7
    reap()
    reap()
    assert queue.job_ids == [job.id]


def test_nothing_is_taken_from_the_living_right_after_redis_was_away(
    add_job, queue, leases, later
) -> None:
    job = add_job()
    leases.take(leases.dequeue(1))
    later(60)
    now = [0.0]
    reap = LeaseReaper(leases, clock=lambda: now[0])
    reap()
    assert queue.job_ids == []
    now[0] = 10
    reap()
    assert queue.job_ids == [job.id]
