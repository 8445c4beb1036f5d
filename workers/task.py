"""One job on a worker: claim, read the uploads, generate, store the pictures, end the record.

`workers/consumer.py` chooses the job and settles its outcome with RQ. A finished picture is never
unwanted because Redis or the storage does not answer: calls of both are retried until they succeed
or the worker stops.
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

from service.core import redis_keys, redis_server, tracing
from service.core.errors import EngineFault, JobFailed, StorageFailed, UnservableRequest
from service.core.job import Job, JobError, JobMetrics, JobWarning, StoredImage, read_number
from service.core.metrics import STAGES, WorkerMetrics
from service.core.queue import server_time
from service.core.storage import Storage, StorageError
from service.core.transitions import Claim, Transitions
from workers import images, retry
from workers.eligibility import REQUEUE_PAUSE_SECONDS, Eligibility, Quarantine
from workers.engine.api import Canceled, EngineDied, EngineJob, EngineResult, Listener, Ticket
from workers.progress import ProgressWriter

R = TypeVar("R")
logger = structlog.get_logger(__name__)

SUSPECT_ATTEMPTS: Final = 2
"""A job that was started so often without an end is quarantined."""


class TaskOutcome(Enum):
    """What becomes of the RQ job."""

    ENDED = "ended"
    """The record is final or gone: nothing is left to do."""
    RETURNED = "returned"
    """It needs another attempt, by any worker."""
    LOST = "lost"
    """Another worker has it."""
    NOT_ELIGIBLE = "not eligible"
    """Another worker must run it; it was not started."""


@dataclass(frozen=True, slots=True)
class Collaborators:
    """What every job of a worker shares."""

    redis: Redis
    storage: Storage
    transitions: Transitions
    submit: Callable[[EngineJob, Listener | None], Ticket]
    """Of the engine."""
    eligibility: Eligibility
    progress: ProgressWriter
    quarantine: Quarantine
    metrics: WorkerMetrics
    worker_name: str
    max_attempts: int
    pictures: images.PictureEncoder = field(default_factory=images.PictureEncoder)
    tracer: Tracer = field(default_factory=tracing.process_tracer)


def generate(job_id: str, shared: Collaborators, *, abort: Event) -> TaskOutcome:
    """Run one job to its end, or until `abort` is set; a job's failure is no exception.

    Raises `retry.Interrupted` where Redis did not answer until `abort`: the lease runs out then.
    """
    return _Generation(job_id, shared, abort).run()


class _Generation:
    def __init__(self, job_id: str, shared: Collaborators, abort: Event) -> None:
        self._claim = Claim(job_id, uuid4().hex)
        self._shared = shared
        self._abort = abort
        self._log = logger.bind(job_id=job_id)

    def run(self) -> TaskOutcome:
        known = self._record()
        if self._redis(lambda: self._shared.eligibility.should_requeue(known)):
            self._log.debug("job requeued for another worker")
            self._abort.wait(REQUEUE_PAUSE_SECONDS)
            return TaskOutcome.NOT_ELIGIBLE
        suspect = (read_number(known.get("attempt")) or 0) >= SUSPECT_ATTEMPTS
        with self._shared.quarantine.enter(suspect=suspect):
            if self._abort.is_set():
                return TaskOutcome.RETURNED
            if not self._redis(
                lambda: self._shared.transitions.claim(self._claim, self._shared.worker_name)
            ):
                return TaskOutcome.ENDED
            try:
                job = Job.from_hash(self._record())
            except ValidationError:
                unreadable = UnservableRequest("No worker could read the job's record.")
                return self._fail(unreadable, JobMetrics())
            return self._run(job)

    def _record(self) -> dict[str, str]:
        """The fields of the record; none where the key is no record."""
        name = redis_keys.job(self._claim.job_id)

        def read() -> dict[bytes | str, bytes | str]:
            with redis_server.wrong_type_is_absent():
                found: dict[bytes | str, bytes | str] = self._shared.redis.hgetall(name)
                return found
            return {}

        return {_text(name): _text(value) for name, value in self._redis(read).items()}

    def _run(self, job: Job) -> TaskOutcome:
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
            maps = self._upload_maps(job, result)
            metrics = metrics.model_copy(
                update={
                    "upload_seconds": time.monotonic() - began,
                    "total_seconds": max(0.0, self._now() - job.created_at),
                }
            )
            return self._succeed(job, stored, maps, metrics, result.warnings)
        except (Canceled, retry.Interrupted):
            return self._stopped()
        except EngineDied:
            return self._handed_back()
        except JobFailed as error:
            failure = error
        except Exception:  # noqa: BLE001  one job must not end the worker
            self._log.exception("job failed unexpectedly")
            failure = EngineFault("The worker failed in an unexpected way; its log has the cause.")
        if self._abort.is_set():
            return self._stopped()
        if failure.retryable and job.attempt < self._shared.max_attempts:
            self._log.warning("attempt failed", cause=failure.detail)
            again = self._redis(lambda: self._shared.transitions.retry(self._claim))
            return TaskOutcome.RETURNED if again else self._lost_claim()
        total = max(0.0, self._now() - job.created_at)
        metrics = metrics.model_copy(update={"total_seconds": total})
        tracing.record_job(self._shared.tracer, job, metrics, "failed", self._now())
        return self._fail(failure, metrics)

    def _pictures(self, job: Job) -> EngineResult:
        shared = self._shared
        unwanted = Event()
        read = partial(images.read_upload, shared.storage, interrupt=unwanted)
        progress = shared.progress.add(self._claim)
        try:
            ticket = shared.submit(EngineJob(job.id, job.request, read), progress)
            progress.ticket = ticket
            while True:
                try:
                    return ticket.result(timeout=0.5)
                except TimeoutError:
                    if self._abort.is_set():
                        ticket.cancel()
        finally:
            unwanted.set()
            shared.progress.remove(progress)

    def _upload(self, job: Job, result: EngineResult) -> tuple[StoredImage, ...]:
        """Store the pictures under keys of this attempt, so that attempts stay apart."""
        stored = []
        for index, image in enumerate(result.images):
            file = self._shared.pictures.encode(image, job.request, index)
            key = self._store(job, f"{index}", file)
            seed = job.request.seed + index
            stored.append(images.stored(key, file, image.size, seed=seed))
        return tuple(stored)

    def _upload_maps(self, job: Job, result: EngineResult) -> tuple[StoredImage, ...]:
        """Store the control maps that were made, in the same way."""
        stored = []
        for index, image in enumerate(result.maps):
            file = images.encode_map(image)
            key = self._store(job, f"map-{index}", file)
            stored.append(images.stored(key, file, image.size))
        return tuple(stored)

    def _store(self, job: Job, name: str, file: images.PictureFile) -> str:
        """Write a file to storage; its key. Raises `StorageFailed` after long silence."""

        def note(error: Exception) -> None:
            self._log.warning("picture not stored yet", cause=str(error))

        key = redis_keys.result(job.id, f"{name}-{self._claim.token[:12]}.{file.extension}")
        try:
            retry.with_backoff(
                lambda: self._shared.storage.put(key, file.data, file.content_type),
                StorageError,
                interrupt=self._abort,
                limit_seconds=images.STORAGE_RETRY_SECONDS,
                on_error=note,
            )
        except StorageError:
            raise StorageFailed("The pictures could not be written to storage.") from None
        return key

    def _succeed(
        self,
        job: Job,
        pictures: tuple[StoredImage, ...],
        maps: tuple[StoredImage, ...],
        metrics: JobMetrics,
        warnings: tuple[JobWarning, ...],
    ) -> TaskOutcome:
        if not self._redis(
            lambda: self._shared.transitions.succeed(
                self._claim, pictures, metrics, job.request.steps, warnings, maps
            )
        ):
            self._discard(pictures + maps)
            return self._lost_claim()
        self._observe(metrics)
        tracing.record_job(self._shared.tracer, job, metrics, "succeeded", self._now())
        self._log.info("job succeeded", **metrics.model_dump())
        return TaskOutcome.ENDED

    def _fail(self, failure: JobFailed, metrics: JobMetrics) -> TaskOutcome:
        error = JobError(type=failure.type, title=failure.title, detail=failure.detail)
        if not self._redis(lambda: self._shared.transitions.fail(self._claim, error, metrics)):
            return self._lost_claim()
        self._log.warning("job failed", error=failure.code, detail=failure.detail)
        return TaskOutcome.ENDED

    def _stopped(self) -> TaskOutcome:
        """The outcome of a job that the engine dropped: canceled, lost, or aborted."""
        return self._handed_back() if self._abort.is_set() else self._lost_claim()

    def _handed_back(self) -> TaskOutcome:
        """Put the job back to queued; the attempt does not count."""
        if not self._redis(lambda: self._shared.transitions.hand_back(self._claim)):
            return self._lost_claim()
        self._log.info("job handed back")
        return TaskOutcome.RETURNED

    def _lost_claim(self) -> TaskOutcome:
        """Whether a job whose claim was lost has ended, or another worker has it."""
        status = self._record().get("status")
        return TaskOutcome.LOST if status in ("queued", "processing") else TaskOutcome.ENDED

    def _discard(self, images: tuple[StoredImage, ...]) -> None:
        for image in images:
            try:
                self._shared.storage.delete(image.key)
            except StorageError as error:
                self._log.warning("orphaned picture left", key=image.key, cause=str(error))

    def _observe(self, metrics: JobMetrics) -> None:
        """Observe the stages of a succeeded job; a failed one has not been through all of them."""
        for stage in STAGES:
            seconds = getattr(metrics, f"{stage}_seconds")
            self._shared.metrics.stage_seconds.labels(stage).observe(seconds)

    def _now(self) -> float:
        """Redis' time, as all times of a record are."""
        return self._redis(lambda: server_time(self._shared.redis))

    def _redis(self, action: Callable[[], R]) -> R:
        """Call Redis until it answers. Raises `retry.Interrupted` once the job is aborted."""

        def note(error: Exception) -> None:
            self._log.warning("Redis call failed; retrying", cause=redis_server.explain(error))

        return retry.with_backoff(action, RedisError, interrupt=self._abort, on_error=note)


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
