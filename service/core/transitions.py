"""The only code that changes a job: each change is one Lua script, so whole or not at all.

A worker that claims a job gets a fencing token; every later write must carry it. Once a job is
final nothing changes it, so a cancel that races a finish ends in one state, and a worker that
comes back from a long pause cannot overwrite what another one has done.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis

from service.core import redis_keys
from service.core.job import (
    EventName,
    Job,
    JobError,
    JobMetrics,
    JobWarning,
    Status,
    StoredImage,
    encode_field,
)
from service.core.redis_server import is_full, wrong_type_is_absent

EVENTS_KEPT: Final = 500
CLAIMED: Final = "claimed"
"""What a script answers whose token is the job's."""
ACTIVE_SECONDS: Final = 24 * 3600
"""So long after its deadline a job that never ended stops to count against its owner's limit."""

_EXHAUSTED = JobError(
    type="urn:imageprompt:error:attempts-exhausted",
    title="Too many attempts",
    detail="The job was started as often as allowed, and no worker finished it.",
)
_EXPIRED = JobError(
    type="urn:imageprompt:error:deadline",
    title="Waited too long",
    detail="The job waited longer than its deadline before a worker could start it.",
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to work on one job until somebody else claims it."""

    job_id: str
    token: str


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a claimed job that is done, of `total`."""

    claim: Claim
    step: int
    total: int


class Transitions:
    """The named changes of a job. Safe from many threads and processes.

    All times are Redis' own, so machines need not agree on the time. Every method raises
    `redis.RedisError` where Redis does not answer.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        retention_seconds: int,
        tombstone_seconds: int,
        max_attempts: int,
        on_end: Callable[[str, str], None] = lambda _model, _status: None,
    ) -> None:
        """`on_end(model, final status)` is called once for each job that this object ends."""
        self._redis = redis
        self._retention = retention_seconds
        self._tombstone = tombstone_seconds
        self._max_attempts = max_attempts
        self._on_end = on_end
        self._claim = redis.register_script(redis_keys.load_script("job_claim"))
        self._progress = redis.register_script(redis_keys.load_script("job_progress"))
        self._finish = redis.register_script(redis_keys.load_script("job_finish"))
        self._hand_back = redis.register_script(redis_keys.load_script("job_hand_back"))
        self._expire = redis.register_script(redis_keys.load_script("job_expire"))
        self._erase = redis.register_script(redis_keys.load_script("job_erase"))
        self._overdue = redis.register_script(redis_keys.load_script("job_overdue"))

    def create(self, job: Job, pipeline: Any) -> None:
        """Write a new job into `pipeline`, which the caller executes as one transaction."""
        pipeline.hset(redis_keys.job(job.id), mapping=job.to_hash())
        counts_until = (job.deadline_at or job.created_at) + ACTIVE_SECONDS
        pipeline.zadd(redis_keys.active_jobs(job.owner), {job.id: counts_until})
        pipeline.zadd(redis_keys.owner_jobs(job.owner), {job.id: job.created_at})
        if job.deadline_at is not None:
            pipeline.zadd(redis_keys.DEADLINES, {job.id: job.deadline_at})
        pipeline.xadd(
            redis_keys.events(job.id),
            {"event": EventName.STATUS.value, "data": json.dumps({"status": job.status.value})},
        )

    def claim(self, claim: Claim, worker: str) -> bool:
        """Take the job; `False` where it is final, gone, past its deadline or its attempts."""
        answer = self._run(
            self._claim,
            claim.job_id,
            claim.token,
            worker,
            self._max_attempts,
            self._retention,
            self._tombstone,
            _EXHAUSTED.model_dump_json(),
            _EXPIRED.model_dump_json(),
        )
        return answer == CLAIMED

    def progress(self, steps: Sequence[Step]) -> list[bool]:
        """Record steps, in one round trip; `False` for each whose claim no longer holds.

        A step that a full Redis does not take is left out.
        """
        if not steps:
            return []
        with self._redis.pipeline(transaction=False) as pipeline:
            for done in steps:
                data = json.dumps({"step": done.step, "total": done.total})
                self._event(done.claim, done.step, EventName.PROGRESS, data, pipeline)
            answers = pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and not is_full(answer):
                raise answer
        return [isinstance(answer, Exception) or _text(answer) == CLAIMED for answer in answers]

    def preview(self, claim: Claim, data: Mapping[str, object]) -> bool:
        """Send a preview event; `False` where the claim no longer holds."""
        answer = self._event(claim, 0, EventName.PREVIEW, json.dumps(data))
        return _text(answer) == CLAIMED

    def succeed(
        self,
        claim: Claim,
        images: tuple[StoredImage, ...],
        metrics: JobMetrics,
        steps: int,
        warnings: tuple[JobWarning, ...] = (),
        maps: tuple[StoredImage, ...] = (),
    ) -> bool:
        """End the job with its pictures; `False` where somebody else has ended or taken it."""
        fields: dict[str, Any] = {"images": images, "metrics": metrics, "step": steps}
        fields |= {"warnings": warnings, "maps": maps}
        return self._end(claim.job_id, claim.token, Status.SUCCEEDED, fields) == "succeeded"

    def fail(self, claim: Claim, error: JobError, metrics: JobMetrics) -> bool:
        """End the job with an error; `False` where somebody else has ended or taken it."""
        fields = {"error": error, "metrics": metrics}
        return self._end(claim.job_id, claim.token, Status.FAILED, fields) == "failed"

    def cancel(self, job_id: str) -> Status | None:
        """End the job as canceled unless it is final already.

        Returns the state it is in afterwards, `None` for an unknown job.
        """
        answer = self._end(job_id, "", Status.CANCELED, {})
        return None if answer == "missing" else Status(answer.removeprefix("already "))

    def hand_back(self, claim: Claim) -> bool:
        """Put a claimed job back to queued without counting the attempt."""
        return self._run(self._hand_back, claim.job_id, claim.token, -1) == "queued"

    def retry(self, claim: Claim) -> bool:
        """Put a claimed job back to queued after an attempt that failed and counts."""
        return self._run(self._hand_back, claim.job_id, claim.token, 0) == "queued"

    def overdue(self, most: int) -> list[str]:
        """Ids of jobs whose deadline has passed and that no worker has started."""
        ids: Any = self._overdue(keys=[redis_keys.DEADLINES], args=[most])
        return [job_id.decode() for job_id in ids]

    def expire(self, job_id: str) -> bool:
        """End an overdue job, unless a worker has started it.

        Whether it is over, whoever ended it; then `service.core.queue.forget` takes it off the
        list of `overdue`, and until then it comes up again.
        """
        answer = self._run(
            self._expire,
            job_id,
            self._retention,
            self._tombstone,
            _EXPIRED.model_dump_json(),
        )
        return answer in ("over", "expired")

    def erase(self, job_id: str, owner: str) -> None:
        """Delete the record and all that Redis holds of a job, for its owner's privacy."""
        keys = [
            redis_keys.job(job_id),
            redis_keys.events(job_id),
            redis_keys.tombstone(job_id),
            redis_keys.owner_jobs(owner),
            redis_keys.active_jobs(owner),
            redis_keys.OUTBOX,
            redis_keys.OUTBOX_ATTEMPTS,
        ]
        self._erase(keys=keys, args=[job_id])

    def _event(
        self, claim: Claim, step: int, name: EventName, data: str, pipeline: Any = None
    ) -> object:
        keys = [redis_keys.job(claim.job_id), redis_keys.events(claim.job_id)]
        args: list[Any] = [claim.job_id, EVENTS_KEPT, claim.token, step, name.value, data]
        return self._progress(keys=keys, args=args, client=pipeline)

    def _end(self, job_id: str, token: str, status: Status, fields: Mapping[str, object]) -> str:
        encoded = json.dumps({name: encode_field(name, value) for name, value in fields.items()})
        return self._run(
            self._finish,
            job_id,
            token,
            status.value,
            self._retention,
            self._tombstone,
            encoded,
        )

    def _run(self, script: Any, job_id: str, *args: object) -> str:
        keys = [redis_keys.job(job_id), redis_keys.events(job_id)]
        if script is not self._hand_back:  # that ends no job
            active = redis_keys.active_jobs(self._owner(keys[0]))
            keys += [active, redis_keys.DEADLINES, redis_keys.OUTBOX, redis_keys.tombstone(job_id)]
        answer = script(keys=keys, args=[job_id, EVENTS_KEPT, *args])
        if not isinstance(answer, list):
            return _text(answer)
        status, model = map(_text, answer)
        self._on_end(model, status)
        return status

    def _owner(self, record: str) -> str:
        """The owner of a job, which never changes; empty where the key is no record."""
        owner: Any = b""
        with wrong_type_is_absent():
            owner = self._redis.hget(record, "owner") or b""
        return _text(owner)


def _text(answer: object) -> str:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
