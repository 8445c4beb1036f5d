"""A job changes in one place, whole or not at all, and once final never again."""

import itertools
import json
import threading
import uuid
from collections.abc import Iterator

import pytest
from redis import Redis

from service.core import redis_keys
from service.core.job import Job, JobError, JobMetrics, Status, StoredImage
from service.core.queue import enqueue, forget, open_queue, server_time
from service.core.transitions import Claim, Step, Transitions
from tests.requests import generate_request

METRICS = JobMetrics(total_seconds=2.5)
ERROR = JobError(type="urn:x", title="x", detail="no luck")
IMAGE = StoredImage(
    key="results/a/0.png", content_type="image/png", width=8, height=8, seed=1, sha256="ab" * 32
)
REQUEST = generate_request()
FAR = 2.0**33


@pytest.fixture
def transitions(redis: Redis) -> Transitions:
    """Transitions with a cap of 3 attempts."""
    return Transitions(redis, retention_seconds=100, tombstone_seconds=50, max_attempts=3)


def pass_deadline(redis: Redis, *job_ids: str) -> None:
    """Let the deadline of jobs have passed a second ago, by Redis' clock."""
    past = server_time(redis) - 1
    for job_id in job_ids:
        redis.hset(redis_keys.job(job_id), "deadline_at", past)
        redis.zadd(redis_keys.DEADLINES, {job_id: past}, xx=True)


def new_job(redis: Redis, transitions: Transitions, **changes: object) -> str:
    """A queued job."""
    job = Job(
        id=str(uuid.uuid4()), owner="me", status=Status.QUEUED, request=REQUEST, created_at=999.0
    ).model_copy(update=changes)
    enqueue(open_queue("q", redis), transitions, job)
    return job.id


def stored(redis: Redis, job_id: str) -> Job:
    """The record as it stands."""
    fields = redis.hgetall(redis_keys.job(job_id))
    return Job.from_hash({name.decode(): text.decode() for name, text in fields.items()})


def events(redis: Redis, job_id: str) -> list[tuple[str, object]]:
    """(name, data) of every event so far."""
    return [
        (entry[b"event"].decode(), json.loads(entry[b"data"]))
        for _, entry in redis.xrange(redis_keys.events(job_id))
    ]


def claim_of(job_id: str) -> Claim:
    """A claim with a token of its own."""
    return Claim(job_id, uuid.uuid4().hex)


def test_a_record_comes_back_as_it_was_written(redis: Redis, transitions: Transitions) -> None:
    job_id = new_job(redis, transitions, deadline_at=2000.0, traceparent="00-x", owner="you")
    job = stored(redis, job_id)
    assert job.request == REQUEST
    assert (job.owner, job.deadline_at, job.traceparent) == ("you", 2000.0, "00-x")
    assert Job.from_hash(job.to_hash()) == job


def test_a_job_runs_from_the_queue_to_its_end(redis: Redis, transitions: Transitions) -> None:
    job_id, before = new_job(redis, transitions), server_time(redis)
    claim = claim_of(job_id)
    assert transitions.claim(claim, "w1")
    assert transitions.progress([Step(claim, 2, 5)]) == [True]
    assert transitions.preview(claim, {"step": 2})
    assert stored(redis, job_id).step == 2
    assert transitions.succeed(claim, (IMAGE,), METRICS, 5)
    job = stored(redis, job_id)
    assert (job.status, job.images, job.metrics, job.step) == (
        Status.SUCCEEDED,
        (IMAGE,),
        METRICS,
        5,
    )
    assert job.started_at is not None
    assert job.completed_at is not None
    assert before <= job.started_at <= job.completed_at <= server_time(redis)
    assert job.expires_at == pytest.approx(job.completed_at + 100)
    assert [name for name, _ in events(redis, job_id)] == [
        "status",
        "status",
        "progress",
        "status",
        "done",
    ]
    assert 0 < redis.ttl(redis_keys.job(job_id)) <= 100
    assert redis.get(redis_keys.tombstone(job_id)) == b"me", (
        "then it answers 410 without its prompt"
    )
    assert 100 < redis.ttl(redis_keys.tombstone(job_id)) <= 150
    assert 0 < redis.ttl(redis_keys.events(job_id)) <= 100


def test_previews_leave_the_stream_with_the_end(redis: Redis, transitions: Transitions) -> None:
    """Ids stay and are not given twice, so that who follows misses and repeats nothing."""
    job_id = new_job(redis, transitions)
    key, claim = redis_keys.events(job_id), claim_of(job_id)
    assert transitions.claim(claim, "w1")
    for step in range(1, 30):
        assert transitions.progress([Step(claim, step, 30)]) == [True]
        assert transitions.preview(claim, {"step": step, "image": "x" * 9000})
    before, size = redis.xrange(key), redis.memory_usage(key)
    assert transitions.succeed(claim, (IMAGE,), METRICS, 30)
    after = redis.xrange(key)
    kept = [entry for entry in before if entry[1][b"event"] != b"preview"]
    assert after[: len(kept)] == kept
    assert [entry[1][b"event"] for entry in after[len(kept) :]] == [b"status", b"done"]
    assert redis.xread({key: before[-1][0]})[0][1] == after[-2:], "after the last preview"
    assert redis.memory_usage(key) < size / 20
    assert 0 < redis.ttl(key) <= 100


def _endings(transitions: Transitions, claim: Claim) -> Iterator[bool]:
    yield transitions.succeed(claim, (IMAGE,), METRICS, 5)
    yield transitions.fail(claim, ERROR, METRICS)
    yield transitions.progress([Step(claim, 1, 5)]) == [True]
    yield transitions.preview(claim, {})
    yield transitions.hand_back(claim)
    yield transitions.retry(claim)
    yield transitions.claim(claim_of(claim.job_id), "w2")


@pytest.mark.parametrize("end", ["succeed", "fail", "cancel"])
def test_nothing_changes_a_final_job(redis: Redis, transitions: Transitions, end: str) -> None:
    job_id = new_job(redis, transitions)
    claim = claim_of(job_id)
    assert transitions.claim(claim, "w1")
    if end == "succeed":
        assert transitions.succeed(claim, (IMAGE,), METRICS, 5)
    elif end == "fail":
        assert transitions.fail(claim, ERROR, METRICS)
    else:
        assert transitions.cancel(job_id) is Status.CANCELED
    before, said = redis.hgetall(redis_keys.job(job_id)), events(redis, job_id)
    assert not any(_endings(transitions, claim_of(job_id)))
    if end == "succeed":
        assert transitions.succeed(claim, (), METRICS, 1), "the same end sent twice is one end"
        assert not transitions.fail(claim, ERROR, METRICS)
    assert transitions.cancel(job_id) is Status(before[b"status"].decode())
    assert redis.hgetall(redis_keys.job(job_id)) == before
    assert events(redis, job_id) == said


def test_a_worker_that_comes_back_late_changes_nothing(
    redis: Redis, transitions: Transitions
) -> None:
    job_id = new_job(redis, transitions)
    late, current = claim_of(job_id), claim_of(job_id)
    assert transitions.claim(late, "w1")
    assert transitions.claim(current, "w2")
    before = redis.hgetall(redis_keys.job(job_id))
    assert not any(itertools.islice(_endings(transitions, late), 6))
    assert redis.hgetall(redis_keys.job(job_id)) == before
    assert transitions.succeed(current, (IMAGE,), METRICS, 5)
    assert stored(redis, job_id).worker == "w2"


def test_a_cancel_that_races_a_finish_ends_in_one_state(
    redis: Redis, transitions: Transitions
) -> None:
    seen = set()
    for number in range(200):
        job_id = new_job(redis, transitions)
        claim = claim_of(job_id)
        transitions.claim(claim, "w")
        answers: dict[str, object] = {}
        start = threading.Barrier(2)

        def cancel(
            job_id: str = job_id,
            answers: dict[str, object] = answers,
            start: threading.Barrier = start,
        ) -> None:
            start.wait()
            answers["canceled"] = transitions.cancel(job_id)

        canceler = threading.Thread(target=cancel)
        canceler.start()
        start.wait()
        if number % 2:
            threading.Event().wait(0.0002)
        succeeded = transitions.succeed(claim, (IMAGE,), METRICS, 5)
        canceler.join()
        status = stored(redis, job_id).status
        assert succeeded == (status is Status.SUCCEEDED)
        assert answers["canceled"] is status
        assert [name for name, _ in events(redis, job_id)].count("done") == 1
        seen.add(status)
    assert seen <= {Status.SUCCEEDED, Status.CANCELED}


def test_a_job_that_kills_its_workers_is_given_up(redis: Redis, transitions: Transitions) -> None:
    job_id = new_job(redis, transitions)
    for _ in range(3):
        assert transitions.claim(claim_of(job_id), "w")
    assert not transitions.claim(claim_of(job_id), "w")
    job = stored(redis, job_id)
    assert (job.status, job.error and job.error.title) == (Status.FAILED, "Too many attempts")


def test_handing_back_is_no_attempt_but_a_retry_is(redis: Redis, transitions: Transitions) -> None:
    job_id = new_job(redis, transitions)
    for _ in range(10):
        claim = claim_of(job_id)
        assert transitions.claim(claim, "w")
        assert transitions.hand_back(claim)
    assert stored(redis, job_id).status is Status.QUEUED
    for _ in range(3):
        claim = claim_of(job_id)
        assert transitions.claim(claim, "w")
        assert transitions.retry(claim)
    assert not transitions.claim(claim_of(job_id), "w")


def test_a_job_that_waited_too_long_expires_but_a_running_one_does_not(
    redis: Redis, transitions: Transitions
) -> None:
    late, running = (new_job(redis, transitions, deadline_at=FAR) for _ in range(2))
    assert transitions.claim(claim_of(running), "w")
    pass_deadline(redis, late, running)
    assert not transitions.claim(claim_of(late), "w")
    assert stored(redis, late).status is Status.EXPIRED
    assert transitions.claim(claim_of(running), "w2")


@pytest.mark.parametrize("back", ["hand_back", "retry"])
def test_a_job_that_was_started_once_is_past_its_deadline(
    redis: Redis, transitions: Transitions, back: str
) -> None:
    """The deadline is for the wait for a first worker: a deployment expires nothing."""
    job_id = new_job(redis, transitions, deadline_at=FAR)
    claim = claim_of(job_id)
    assert transitions.claim(claim, "w")
    assert getattr(transitions, back)(claim)
    pass_deadline(redis, job_id)
    assert transitions.overdue(9) == []
    assert not transitions.expire(job_id)
    assert transitions.claim(claim_of(job_id), "w2")


def test_an_overdue_job_ends_without_a_worker(redis: Redis, transitions: Transitions) -> None:
    late = new_job(redis, transitions, deadline_at=FAR)
    redis.hset(redis_keys.job(late), "webhook", "https://example.org")
    new_job(redis, transitions, deadline_at=FAR)
    assert transitions.overdue(9) == []
    pass_deadline(redis, late)
    assert transitions.overdue(9) == [late]
    assert [transitions.expire(late) for _ in range(2)] == [True, True], "several look at once"
    assert stored(redis, late).status is Status.EXPIRED
    assert [name for name, _ in events(redis, late)] == ["status", "status", "done"]
    assert redis.zrange(redis_keys.OUTBOX, 0, -1) == [late.encode()]
    assert transitions.overdue(9) == [late], "until it is out of the queue"
    forget(open_queue("q", redis), late)
    assert transitions.overdue(9) == []


@pytest.mark.parametrize(
    ("wanted", "at_start", "at_end"),
    [
        (None, [], [""]),
        ("start output completed", [":start"], [":output", ""]),
        ("output logs", [], [":output"]),
        ("start", [":start"], []),
    ],
)
def test_a_transition_adds_the_webhooks_that_the_job_asked_for(
    redis: Redis,
    transitions: Transitions,
    wanted: str | None,
    at_start: list[str],
    at_end: list[str],
) -> None:
    job_id = new_job(redis, transitions)
    redis.hset(redis_keys.job(job_id), "webhook", "https://example.org")
    if wanted is not None:
        redis.hset(redis_keys.job(job_id), "webhook_events", wanted)

    def added() -> set[str]:
        entries = redis.zrange(redis_keys.OUTBOX, 0, -1)
        redis.delete(redis_keys.OUTBOX)
        return {entry.decode().removeprefix(job_id) for entry in entries}

    first, second = claim_of(job_id), claim_of(job_id)
    for _ in range(2):  # repeated after a lost answer
        assert transitions.claim(first, "w")
    assert added() == set(at_start)
    assert transitions.hand_back(first)
    assert transitions.claim(second, "w")
    assert added() == set(), "it starts once"
    assert transitions.succeed(second, (IMAGE,), METRICS, 1)
    assert added() == set(at_end)


def test_a_job_that_failed_has_no_output_to_tell_of(redis: Redis, transitions: Transitions) -> None:
    job_id, fields = new_job(redis, transitions), {"webhook": "u", "webhook_events": "output"}
    redis.hset(redis_keys.job(job_id), mapping=fields)
    claim = claim_of(job_id)
    assert transitions.claim(claim, "w")
    assert transitions.fail(claim, ERROR, METRICS)
    assert redis.zcard(redis_keys.OUTBOX) == 0


@pytest.fixture
def ended() -> list[tuple[str, str]]:
    """Model and final state of every end that was counted."""
    return []


@pytest.fixture
def counting(redis: Redis, ended: list[tuple[str, str]]) -> Transitions:
    """Transitions that tell of ends."""
    return Transitions(
        redis,
        retention_seconds=100,
        tombstone_seconds=50,
        max_attempts=1,
        on_end=lambda *end: ended.append(end),
    )


def test_each_end_is_counted_once_whoever_made_it(
    redis: Redis, counting: Transitions, ended: list[tuple[str, str]]
) -> None:
    good, bad, dead, late, overdue, canceled = (
        new_job(redis, counting, deadline_at=FAR) for _ in range(6)
    )
    claims = {job_id: claim_of(job_id) for job_id in (good, bad, dead)}
    assert all(counting.claim(claim, "w") for claim in claims.values())
    pass_deadline(redis, *claims, late, overdue, canceled)
    assert ended == []
    assert counting.succeed(claims[good], (IMAGE,), METRICS, 5)
    assert counting.fail(claims[bad], ERROR, METRICS)
    assert not counting.claim(claim_of(dead), "w"), "its worker died, and once is all it may"
    assert not counting.claim(claim_of(late), "w")
    assert counting.expire(overdue)
    assert counting.cancel(canceled) is Status.CANCELED
    ends = ["succeeded", "failed", "failed", "expired", "expired", "canceled"]
    assert ended == [("tiny", end) for end in ends]
    for job_id in (good, bad, dead, late, overdue, canceled):
        counting.cancel(job_id)
        counting.expire(job_id)
        assert not any(_endings(counting, claim_of(job_id)))
    assert len(ended) == len(ends)


def test_an_end_whose_answer_was_lost_is_counted_when_it_is_asked_for_again(
    redis: Redis,
    transitions: Transitions,
    counting: Transitions,
    ended: list[tuple[str, str]],
) -> None:
    done, late = (new_job(redis, transitions, deadline_at=FAR) for _ in range(2))
    claim, too_late = claim_of(done), claim_of(late)
    assert transitions.claim(claim, "w")
    pass_deadline(redis, done, late)
    assert transitions.succeed(claim, (IMAGE,), METRICS, 5)  # who asked does not learn of it
    assert not transitions.claim(too_late, "w")
    assert counting.succeed(claim, (IMAGE,), METRICS, 5)
    assert not counting.claim(too_late, "w")
    assert ended == [("tiny", "succeeded"), ("tiny", "expired")]


def test_a_claim_whose_answer_was_lost_is_one_attempt(
    redis: Redis, transitions: Transitions
) -> None:
    job_id = new_job(redis, transitions)
    claim, other = claim_of(job_id), claim_of(job_id)
    assert transitions.claim(claim, "w")  # who asked does not learn of it
    assert transitions.progress([Step(claim, 2, 5)]) == [True]
    before, said = redis.hgetall(redis_keys.job(job_id)), events(redis, job_id)
    assert transitions.claim(claim, "w")
    assert redis.hgetall(redis_keys.job(job_id)) == before
    assert events(redis, job_id) == said
    assert transitions.claim(other, "w2")
    assert stored(redis, job_id).attempt == 2
    assert transitions.hand_back(other)
    assert transitions.claim(other, "w2"), "it was given back, so this is a new claim"
    assert stored(redis, job_id).attempt == 2
    assert stored(redis, job_id).status is Status.PROCESSING


@pytest.mark.parametrize("request_text", [b"{", b"7", b'{"model": 3}', None])
def test_the_end_of_a_damaged_record_is_counted_without_a_model(
    redis: Redis,
    counting: Transitions,
    ended: list[tuple[str, str]],
    request_text: bytes | None,
) -> None:
    job_id = new_job(redis, counting)
    if request_text is None:
        redis.hdel(redis_keys.job(job_id), "request")
    else:
        redis.hset(redis_keys.job(job_id), "request", request_text)
    assert counting.cancel(job_id) is Status.CANCELED
    assert ended == [("", "canceled")]


def test_an_erased_job_leaves_no_count_of_its_webhooks(
    redis: Redis, transitions: Transitions
) -> None:
    job_id = new_job(redis, transitions)
    for entry in (job_id, f"{job_id}:start", f"{job_id}:output"):
        redis.zadd(redis_keys.OUTBOX, {entry: 1})
        redis.hset(redis_keys.OUTBOX_ATTEMPTS, entry, 3)
    transitions.erase(job_id, "me")
    forget(open_queue("q", redis), job_id)
    assert redis.keys("imageprompt:*") == []


def test_an_unknown_job_is_left_unknown(redis: Redis, transitions: Transitions) -> None:
    claim = claim_of("nobody")
    assert transitions.cancel("nobody") is None
    assert not transitions.claim(claim, "w")
    assert not transitions.succeed(claim, (), METRICS, 1)
    assert redis.keys("*") == []


def test_queueing_is_whole_or_not_at_all(redis: Redis, transitions: Transitions) -> None:
    def break_it(pipeline: object) -> None:
        raise ConnectionError(str(pipeline))

    job = Job(id="j", owner="me", status=Status.QUEUED, request=REQUEST, created_at=1.0)
    queue = open_queue("q", redis)
    with pytest.raises(ConnectionError):
        enqueue(queue, transitions, job, also=break_it)
    assert redis.keys("*") == []
    enqueue(queue, transitions, job, also=lambda pipeline: pipeline.set("beside", 1))
    assert redis.get("beside") == b"1"
    assert queue.job_ids == ["j"]
    before = {name: redis.dump(name) for name in redis.keys("*")}
    more = job.model_copy(update={"id": "k"})
    assert not enqueue(queue, transitions, more, most=1), "the queue is full"
    assert {name: redis.dump(name) for name in redis.keys("*")} == before
    forget(queue, "j")
    assert queue.job_ids == []
