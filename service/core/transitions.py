"""The only code that changes a job. Each change is one Lua script, so it happens whole or not.

A worker that claims a job gets a fencing token; every later write must carry it. Once a job is
final nothing changes it, so a cancel that races a finish ends in one state, and a worker that
comes back from a long pause cannot overwrite what another one has done.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis

from service.core import keys
from service.core.job import (
    EventName,
    Job,
    JobError,
    JobMetrics,
    Status,
    StoredImage,
    encode_field,
)

EVENTS_KEPT: Final = 500
ACTIVE_SECONDS: Final = 24 * 3600
"""So long after its deadline a job that never ended stops to count against its owner's limit."""

_EMIT = """
local function emit(name, data)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], '*', 'event', name, 'data', data)
end
local function finish(status, now, keep, tombstone, fields)
  redis.call('HSET', KEYS[1], 'status', status, 'completed_at', now, 'expires_at', now + keep)
  for name, value in pairs(fields) do redis.call('HSET', KEYS[1], name, value) end
  redis.call('HDEL', KEYS[1], 'fence')
  local owner = redis.call('HGET', KEYS[1], 'owner')
  redis.call('ZREM', 'ACTIVE' .. owner, id)
  if redis.call('HEXISTS', KEYS[1], 'webhook') == 1 then
    redis.call('ZADD', 'OUTBOX', now, id)
  end
  emit('status', cjson.encode({status = status}))
  emit('done', cjson.encode({status = status}))
  redis.call('EXPIRE', KEYS[1], keep + tombstone)
  redis.call('EXPIRE', KEYS[2], keep)
end
-- The answer to the call that has ended the job, and to no other: so each end is told once.
local function ended(answer)
  local whole, request = pcall(cjson.decode, redis.call('HGET', KEYS[1], 'request') or '')
  local model = whole and type(request) == 'table' and request.model
  return {answer, type(model) == 'string' and model or ''}
end
-- A worker may ask for the same end twice, when the first answer was lost on its way.
local function ended_by(token)
  return token ~= '' and redis.call('HGET', KEYS[1], 'ended_by') == token
end
local status = redis.call('HGET', KEYS[1], 'status')
""".replace("ACTIVE", keys.active_jobs("")).replace("OUTBOX", keys.OUTBOX)
_EMIT = f"local id = string.sub(KEYS[1], {len(keys.job('')) + 1})" + _EMIT

# ARGV: events kept, token, worker, now, attempt cap, keep, tombstone, errors (exhausted, expired)
_CLAIM = (
    _EMIT
    + """
if not status then return 'missing' end
if status ~= 'queued' and status ~= 'processing' then
  return ended_by(ARGV[2]) and ended(status) or status
end
local now, keep, tombstone = tonumber(ARGV[4]), tonumber(ARGV[6]), tonumber(ARGV[7])
redis.call('ZREM', 'DEADLINES', id)
local deadline = redis.call('HGET', KEYS[1], 'deadline_at')
-- It is for the wait for a first worker: a job that was handed back has had one.
local started = redis.call('HEXISTS', KEYS[1], 'started_at') == 1
if not started and deadline and now > tonumber(deadline) then
  finish('expired', now, keep, tombstone, {error = ARGV[9], ended_by = ARGV[2]})
  return ended('expired')
end
if redis.call('HINCRBY', KEYS[1], 'attempt', 1) > tonumber(ARGV[5]) then
  finish('failed', now, keep, tombstone, {error = ARGV[8], ended_by = ARGV[2]})
  return ended('failed')
end
redis.call('HSETNX', KEYS[1], 'started_at', ARGV[4])
redis.call('HSET', KEYS[1], 'status', 'processing', 'fence', ARGV[2], 'worker', ARGV[3], 'step', 0)
emit('status', cjson.encode({status = 'processing'}))
return 'claimed'
"""
).replace("DEADLINES", keys.DEADLINES)

# ARGV: events kept, now, keep, tombstone, error
_EXPIRE = (
    _EMIT
    + """
if status ~= 'queued' and status ~= 'processing' then return 'over' end
if redis.call('HEXISTS', KEYS[1], 'started_at') == 1 then
  redis.call('ZREM', 'DEADLINES', id)
  return 'started'
end
finish('expired', tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), {error = ARGV[5]})
return ended('expired')
"""
).replace("DEADLINES", keys.DEADLINES)

# ARGV: events kept, token, step, event name, event data
_PROGRESS = (
    _EMIT
    + """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[2] then return status or 'missing' end
if ARGV[4] == 'progress' then redis.call('HSET', KEYS[1], 'step', ARGV[3]) end
emit(ARGV[4], ARGV[5])
return 'claimed'
"""
)

# ARGV: events kept, token ('' from the API), new status, now, keep, tombstone, JSON of fields
_FINISH = (
    _EMIT
    + """
if not status then return 'missing' end
if status ~= 'queued' and status ~= 'processing' then
  return status == ARGV[3] and ended_by(ARGV[2]) and ended(status) or 'already ' .. status
end
if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], 'fence') ~= ARGV[2] then return 'lost' end
redis.call('HSET', KEYS[1], 'ended_by', ARGV[2])
finish(ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), cjson.decode(ARGV[7]))
return ended(ARGV[3])
"""
)

# ARGV: events kept, token, change of the attempt counter
_HAND_BACK = (
    _EMIT
    + """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[2] then return status or 'missing' end
redis.call('HSET', KEYS[1], 'status', 'queued', 'step', 0)
redis.call('HINCRBY', KEYS[1], 'attempt', ARGV[3])
redis.call('HDEL', KEYS[1], 'fence', 'worker')
emit('status', cjson.encode({status = 'queued'}))
return 'queued'
"""
)

_EXHAUSTED = JobError(
    type="urn:imageprompt:error:attempts-exhausted",
    title="Given up",
    detail="The job was started as often as allowed and its worker never came to an end with it.",
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


class Transitions:
    """The named changes of a job. Safe from many threads and processes.

    Every method raises `redis.RedisError` where Redis does not answer.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        retention_seconds: int,
        tombstone_seconds: int,
        max_attempts: int,
        clock: Callable[[], float] = time.time,
        on_end: Callable[[str, str], None] = lambda _model, _status: None,
    ) -> None:
        """`on_end` is told the model and final state of each job that is ended here, once."""
        self._redis = redis
        self._retention = retention_seconds
        self._tombstone = tombstone_seconds
        self._max_attempts = max_attempts
        self._clock = clock
        self._on_end = on_end
        self._claim = redis.register_script(_CLAIM)
        self._progress = redis.register_script(_PROGRESS)
        self._finish = redis.register_script(_FINISH)
        self._hand_back = redis.register_script(_HAND_BACK)
        self._expire = redis.register_script(_EXPIRE)

    def create(self, job: Job, pipeline: Any) -> None:
        """Write a new job into `pipeline`, which the caller executes as one transaction."""
        pipeline.hset(keys.job(job.id), mapping=job.to_hash())
        counts_until = (job.deadline_at or job.created_at) + ACTIVE_SECONDS
        pipeline.zadd(keys.active_jobs(job.owner), {job.id: counts_until})
        pipeline.zadd(keys.owner_jobs(job.owner), {job.id: job.created_at})
        if job.deadline_at is not None:
            pipeline.zadd(keys.DEADLINES, {job.id: job.deadline_at})
        pipeline.xadd(
            keys.events(job.id),
            {"event": EventName.STATUS.value, "data": json.dumps({"status": job.status.value})},
        )

    def claim(self, claim: Claim, worker: str) -> bool:
        """Take the job; `False` where it is final, gone, past its deadline or its attempts."""
        answer = self._run(
            self._claim,
            claim.job_id,
            claim.token,
            worker,
            self._clock(),
            self._max_attempts,
            self._retention,
            self._tombstone,
            _EXHAUSTED.model_dump_json(),
            _EXPIRED.model_dump_json(),
        )
        return answer == "claimed"

    def progress(self, claim: Claim, step: int, total: int) -> bool:
        """Record that `step` of `total` is done; `False` where the claim no longer holds."""
        data = json.dumps({"step": step, "total": total})
        return self._event(claim, step, EventName.PROGRESS, data)

    def preview(self, claim: Claim, data: Mapping[str, object]) -> bool:
        """Send a preview event; `False` where the claim no longer holds."""
        return self._event(claim, 0, EventName.PREVIEW, json.dumps(data))

    def succeed(
        self, claim: Claim, images: tuple[StoredImage, ...], metrics: JobMetrics, steps: int
    ) -> bool:
        """End the job with its pictures; `False` where somebody else has ended or taken it."""
        fields = {"images": images, "metrics": metrics, "step": steps}
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
        ids: Any = self._redis.zrangebyscore(
            keys.DEADLINES, "-inf", self._clock(), start=0, num=most
        )
        return [job_id.decode() for job_id in ids]

    def expire(self, job_id: str) -> bool:
        """End an overdue job, unless a worker has started it.

        Whether it is over, whoever ended it; then `service.core.queue.forget` takes it off the
        list of `overdue`, and until then it comes up again.
        """
        answer = self._run(
            self._expire,
            job_id,
            self._clock(),
            self._retention,
            self._tombstone,
            _EXPIRED.model_dump_json(),
        )
        return answer in ("over", "expired")

    def erase(self, job_id: str, owner: str) -> None:
        """Delete the record and all that Redis holds of a job, for its owner's privacy."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(keys.job(job_id), keys.events(job_id))
            pipeline.zrem(keys.owner_jobs(owner), job_id)
            pipeline.zrem(keys.active_jobs(owner), job_id)
            pipeline.zrem(keys.OUTBOX, job_id)
            pipeline.hdel(keys.OUTBOX_ATTEMPTS, job_id)
            pipeline.execute()

    def _event(self, claim: Claim, step: int, name: EventName, data: str) -> bool:
        answer = self._run(self._progress, claim.job_id, claim.token, step, name.value, data)
        return answer == "claimed"

    def _end(self, job_id: str, token: str, status: Status, fields: Mapping[str, object]) -> str:
        encoded = json.dumps({name: encode_field(name, value) for name, value in fields.items()})
        return self._run(
            self._finish,
            job_id,
            token,
            status.value,
            self._clock(),
            self._retention,
            self._tombstone,
            encoded,
        )

    def _run(self, script: Any, job_id: str, *args: object) -> str:
        answer = script(keys=[keys.job(job_id), keys.events(job_id)], args=[EVENTS_KEPT, *args])
        if not isinstance(answer, list):
            return _text(answer)
        status, model = map(_text, answer)
        self._on_end(model, status)
        return status


def _text(answer: object) -> str:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
