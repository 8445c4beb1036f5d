"""The life of one job on a worker: claim, read, generate, store, end.

`workers/consumer.py` says which job, and puts back what is returned. A finished picture is never
dropped because Redis or the storage does not answer: both are tried again until they answer or the
worker is told to stop.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from threading import Event
from typing import Final, TypeVar
from uuid import uuid4

import structlog
from opentelemetry.trace import Tracer
from pydantic import ValidationError
from redis import Redis, RedisError

from service.core import redis_keys, tracing
from service.core.errors import EngineFault, JobFailed, StorageFailed
from service.core.job import Job, JobError, JobMetrics, StoredImage
from service.core.metrics import STAGES, WorkerMetrics
from service.core.storage import Storage, StorageError
from service.core.transitions import Claim, Transitions
from workers import images, retry
from workers.eligibility import PAUSE_SECONDS, Elsewhere
from workers.engine.api import Canceled, EngineDied, EngineJob, EngineResult, Listener, Ticket
from workers.isolation import Isolation
from workers.progress import Reporter

R = TypeVar("R")
logger = structlog.get_logger(__name__)

SUSPECT_ATTEMPTS: Final = 2
"""A job that was started so often and never ended is run alone."""


class Outcome(Enum):
    """What becomes of the RQ job."""

    ENDED = "ended"
    """The record is final or gone: nothing is left to do."""
    RETURNED = "returned"
    """Another attempt is wanted, here or elsewhere."""
    LOST = "lost"
    """Another worker has it."""
    ELSEWHERE = "elsewhere"
    """Another worker must do it; it was not started here."""


@dataclass(frozen=True, slots=True)
class Collaborators:
    """What every job of a worker shares."""

    redis: Redis
    storage: Storage
    transitions: Transitions
    submit: Callable[[EngineJob, Listener | None], Ticket]
    """Of the engine."""
    elsewhere: Elsewhere
    reporter: Reporter
    isolation: Isolation
    metrics: WorkerMetrics
    worker_name: str
    max_attempts: int
    tracer: Tracer = field(default_factory=tracing.process_tracer)


def generate(job_id: str, shared: Collaborators, *, let_go: Event) -> Outcome:
    """Run one job to its end, or until `let_go` is set; never raises for what a job may do.

    Raises `patience.Interrupted` where Redis stayed away until `let_go`: the lease runs out then.
    """
    return _Generation(job_id, shared, let_go).run()


class _Generation:
    def __init__(self, job_id: str, shared: Collaborators, let_go: Event) -> None:
        self._claim = Claim(job_id, uuid4().hex)
        self._shared = shared
        self._let_go = let_go
        self._log = logger.bind(job_id=job_id)

    def run(self) -> Outcome:
        known = self._record()
        if self._redis(lambda: self._shared.elsewhere.is_awaited(known)):
            self._log.debug("job left to another worker")
            self._let_go.wait(PAUSE_SECONDS)
            return Outcome.ELSEWHERE
        suspect = int(known.get("attempt", 0)) >= SUSPECT_ATTEMPTS
        with self._shared.isolation.enter(suspect=suspect):
            if self._let_go.is_set():
                return Outcome.RETURNED
            if not self._redis(
                lambda: self._shared.transitions.claim(self._claim, self._shared.worker_name)
            ):
                return Outcome.ENDED
            try:
                job = Job.from_hash(self._record())
            except ValidationError:
                return self._fail(EngineFault("The job's record is damaged."), JobMetrics())
            return self._run(job)

    def _record(self) -> dict[str, str]:
        fields = self._redis(lambda: self._shared.redis.hgetall(redis_keys.job(self._claim.job_id)))
        return {_text(name): _text(value) for name, value in fields.items()}

    def _run(self, job: Job) -> Outcome:
        self._log = self._log.bind(attempt=job.attempt, **tracing.log_fields(job.traceparent))
        metrics = JobMetrics(queue_seconds=max(0.0, (job.started_at or 0) - job.created_at))
        try:
            result = self._pictures(job)
            metrics = metrics.model_copy(
                update={
                    "encode_seconds": result.encode_seconds,
                    "denoise_seconds": result.denoise_seconds,
                    "decode_seconds": result.decode_seconds,
                    "max_batch": result.max_batch,
                    "image_embedding_cache": result.image_embedding_cache,
                }
            )
            began = time.monotonic()
            stored = self._upload(job, result)
            metrics = metrics.model_copy(
                update={
                    "upload_seconds": time.monotonic() - began,
                    "total_seconds": max(0.0, time.time() - job.created_at),
                }
            )
            return self._succeed(job, stored, metrics)
        except (Canceled, retry.Interrupted):
            return self._stopped()
        except EngineDied:
            return self._handed_back()
        except JobFailed as error:
            failure = error
        except Exception:  # noqa: BLE001  one job must never end the worker
            self._log.exception("job failed unexpectedly")
            failure = EngineFault("The worker failed in an unexpected way; its log has the cause.")
        if self._let_go.is_set():
            return self._stopped()
        if failure.retryable and job.attempt < self._shared.max_attempts:
            self._log.warning("attempt failed", cause=failure.detail)
            again = self._redis(lambda: self._shared.transitions.retry(self._claim))
            return Outcome.RETURNED if again else self._whose()
        total = max(0.0, time.time() - job.created_at)
        metrics = metrics.model_copy(update={"total_seconds": total})
        tracing.record_job(self._shared.tracer, job, metrics, "failed", time.time())
        return self._fail(failure, metrics)

    def _pictures(self, job: Job) -> EngineResult:
        shared = self._shared
        dropped = Event()
        read = partial(images.read_upload, shared.storage, interrupt=dropped)
        following = shared.reporter.follow(self._claim)
        try:
            ticket = shared.submit(EngineJob(job.id, job.request, read), following)
            following.ticket = ticket
            while True:
                try:
                    return ticket.result(timeout=0.5)
                except TimeoutError:
                    if self._let_go.is_set():
                        ticket.cancel()
        finally:
            dropped.set()
            shared.reporter.leave(following)

    def _upload(self, job: Job, result: EngineResult) -> tuple[StoredImage, ...]:
        """Store the pictures under names of this attempt, so that no other one overwrites them."""

        def note(error: Exception) -> None:
            self._log.warning("picture not stored yet", cause=str(error))

        stored = []
        for index, image in enumerate(result.images):
            file = images.encode(image, job.request, index)
            key = redis_keys.result(job.id, f"{index}-{self._claim.token[:12]}.{file.extension}")
            try:
                retry.persist(
                    lambda key=key, file=file: self._shared.storage.put(  # type: ignore[misc]
                        key, file.data, file.content_type
                    ),
                    StorageError,
                    interrupt=self._let_go,
                    patience_seconds=images.STORAGE_RETRY_SECONDS,
                    on_error=note,
                )
            except StorageError:
                raise StorageFailed("The pictures could not be written to storage.") from None
            stored.append(
                StoredImage(
                    key=key,
                    content_type=file.content_type,
                    width=image.width,
                    height=image.height,
                    seed=job.request.seed + index,
                    sha256=file.sha256,
                )
            )
        return tuple(stored)

    def _succeed(self, job: Job, images: tuple[StoredImage, ...], metrics: JobMetrics) -> Outcome:
        steps = job.request.steps
        if not self._redis(
            lambda: self._shared.transitions.succeed(self._claim, images, metrics, steps)
        ):
            self._discard(images)
            return self._whose()
        self._observe(metrics)
        tracing.record_job(self._shared.tracer, job, metrics, "succeeded", time.time())
        self._log.info("job succeeded", **metrics.model_dump())
        return Outcome.ENDED

    def _fail(self, failure: JobFailed, metrics: JobMetrics) -> Outcome:
        error = JobError(type=failure.type, title=failure.title, detail=failure.detail)
        if not self._redis(lambda: self._shared.transitions.fail(self._claim, error, metrics)):
            return self._whose()
        self._log.warning("job failed", error=failure.code, detail=failure.detail)
        return Outcome.ENDED

    def _stopped(self) -> Outcome:
        """Go on from a job that was dropped: canceled, taken away, or handed back by us."""
        return self._handed_back() if self._let_go.is_set() else self._whose()

    def _handed_back(self) -> Outcome:
        """Leave the job to another worker, the attempt not counted."""
        if not self._redis(lambda: self._shared.transitions.hand_back(self._claim)):
            return self._whose()
        self._log.info("job handed back")
        return Outcome.RETURNED

    def _whose(self) -> Outcome:
        """Tell a job that is over from one that another worker holds."""
        status = self._redis(
            lambda: self._shared.redis.hget(redis_keys.job(self._claim.job_id), "status")
        )
        return Outcome.LOST if status in (b"queued", b"processing") else Outcome.ENDED

    def _discard(self, images: tuple[StoredImage, ...]) -> None:
        for image in images:
            try:
                self._shared.storage.delete(image.key)
            except StorageError as error:
                self._log.warning("orphaned picture left", key=image.key, cause=str(error))

    def _observe(self, metrics: JobMetrics) -> None:
        """Add the stages of a succeeded job; one that failed has not been through all of them."""
        for stage in STAGES:
            seconds = getattr(metrics, f"{stage}_seconds")
            self._shared.metrics.stage_seconds.labels(stage).observe(seconds)

    def _redis(self, action: Callable[[], R]) -> R:
        """Ask Redis until it answers. Raises `patience.Interrupted` once the worker lets go."""

        def note(error: Exception) -> None:
            self._log.warning("Redis does not answer", cause=type(error).__name__)

        return retry.persist(action, RedisError, interrupt=self._let_go, on_error=note)


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
