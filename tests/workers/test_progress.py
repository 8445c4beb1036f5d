"""Progress reaches Redis in order, whatever Redis' pace."""

import json

from service.core import redis_keys
from service.core.transitions import Claim, Step
from tests.running import until
from workers.progress import STEPS_KEPT, ProgressWriter


def test_newest_steps_stay_while_redis_is_slow(add_job, redis, transitions) -> None:
    job = add_job()
    claim = Claim(job.id, "token")
    transitions.claim(claim, "worker")
    writer = ProgressWriter(redis, transitions)
    progress = writer.add(claim)
    for step in range(1, STEPS_KEPT + 9):
        progress.on_step(step, 50)
    writer.start()
    until(lambda: not progress.steps)
    writer.close()
    writer.join(30)
    assert written_steps(redis, job.id) == list(range(9, STEPS_KEPT + 9))


def written_steps(redis, job_id: str) -> list[int]:
    events = [fields for _, fields in redis.xrange(redis_keys.events(job_id))]
    return [json.loads(one[b"data"])["step"] for one in events if one[b"event"] == b"progress"]


def test_last_steps_are_written_though_the_job_ends_first(add_job, redis, transitions) -> None:
    job = add_job()
    claim = Claim(job.id, "token")
    transitions.claim(claim, "worker")
    writer = ProgressWriter(redis, transitions)  # its thread does not run
    progress = writer.add(claim)
    for step in (3, 4):
        progress.on_step(step, 4)
    writer.remove(progress)
    assert written_steps(redis, job.id) == [3, 4]


def test_steps_of_several_jobs_are_written_together_and_a_lost_claim_costs_its_own_only(
    add_job, redis, transitions
) -> None:
    claims = [Claim(add_job().id, "token") for _ in range(3)]
    for claim in claims:
        transitions.claim(claim, "worker")
    transitions.cancel(claims[1].job_id)
    steps = [Step(claim, step, 4) for step in (1, 2) for claim in claims]
    assert transitions.progress(steps) == [True, False, True] * 2
    assert [written_steps(redis, claim.job_id) for claim in claims] == [[1, 2], [], [1, 2]]
