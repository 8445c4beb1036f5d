"""The RQ worker: takes jobs from one queue and runs each on a thread, without forking.

RQ's own workers fork a process a job and would lose the warm models, and their loop ends at the
first time-out of Redis. This one holds as many jobs as it has slots, acquires a slot before it
takes a job, and continues after any error.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final
from uuid import uuid4

import structlog
from redis import Redis, RedisError, ResponseError
from redis.client import Pipeline
from rq import worker_registration
from rq.exceptions import NoSuchJobError
from rq.serializers import JSONSerializer
from rq.utils import now
from rq.worker.base import BaseWorker, WorkerStatus

from service.core import redis_server
from service.core.errors import URN
from service.core.job import JobError, JobMetrics
from service.core.queue import open_queue
from service.core.transitions import Claim, Transitions
from workers import retry
from workers.leases import Lease, Leases, QueuedJob, Rejected, check
from workers.task import TaskOutcome

logger = structlog.get_logger(__name__)

DEQUEUE_SECONDS: Final = 1
RETRY_SECONDS: Final = 1.0
HAND_BACK_SECONDS: Final = 10.0
"""How long aborted jobs may take to end."""
WORKER_TTL_SECONDS: Final = 16  # RQ waits 15 s less than this for a job at most

_REJECTED: Final = JobError(
    type=f"{URN}refused",
    title="Refused",
    detail="The queued job differs from what the API writes, so no worker ran it.",
)

Task = Callable[[str, threading.Event], TaskOutcome]


class Consumer(BaseWorker):
    """Holds up to `slots` jobs of one queue at once and gives each to `task` on its own thread."""

    job_class = QueuedJob

    def __init__(
        self,
        redis: Redis,
        queue_name: str,
        *,
        name: str,
        task: Task,
        accepting: Callable[[], bool],
        transitions: Transitions,
        slots: int,
        lease_seconds: float,
    ) -> None:
        """Register nothing yet. Raises `redis.RedisError` where Redis does not answer.

        While `accepting` returns `False`, no job is taken.
        """
        queue = open_queue(queue_name, redis, QueuedJob)
        worker_registration.clean_worker_registry(queue)  # names of killed ones would stay
        super().__init__(
            [queue],
            name=name,
            connection=redis,
            serializer=JSONSerializer,
            worker_ttl=WORKER_TTL_SECONDS,
        )
        self.birth_date = now()
        self.leases = Leases(queue, worker_name=name, lease_seconds=lease_seconds)
        self._task = task
        self._accepting = accepting
        self._transitions = transitions
        self._slots = threading.BoundedSemaphore(slots)
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="job")
        self._held: dict[Lease, Future[None]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._abort = threading.Event()

    @property
    def held(self) -> list[Lease]:
        """The leases of the jobs that are running."""
        with self._lock:
            return list(self._held)

    def stop(self) -> None:
        """Take no more jobs; called again, hand running ones back. Safe in a signal handler."""
        if self._stop.is_set():
            self._abort.set()
        self._stop.set()

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Renew the worker's registration with RQ and every lease it holds."""
        if pipeline is not None:
            super().heartbeat(timeout, pipeline)
            return
        self.leases.renew(self.held)
        with self.connection.pipeline() as own:
            super().heartbeat(timeout, own)
            # Registered anew each time, in case Redis lost its data.
            own.hset(self.key, mapping=self.serialize())
            self.set_state(WorkerStatus.BUSY if self.held else WorkerStatus.IDLE, own)
            worker_registration.register(self, own)
            try:
                own.execute()
            except ResponseError as error:  # of a full Redis, for example; only RQ's tools read it
                logger.warning("worker not registered with RQ", cause=redis_server.explain(error))

    def work_until_stopped(self, drain_seconds: float) -> None:
        """Take and run jobs until `stop`; then give running ones `drain_seconds` to finish."""
        while not self._stop.is_set():
            if not self._slots.acquire(timeout=0.2):
                continue
            taken = False
            try:
                taken = self._take_one()
            except RedisError as error:
                logger.warning("no jobs taken", cause=redis_server.explain(error))
                self._stop.wait(RETRY_SECONDS)
            except Exception:
                logger.exception("no job taken")
                self._stop.wait(RETRY_SECONDS)
            finally:
                if not taken:
                    self._slots.release()
        self._drain(drain_seconds)

    def _take_one(self) -> bool:
        """Dequeue and start one job; `False` where there was none to start."""
        job_id = self._dequeue()
        if job_id is None:
            return False
        try:
            check(QueuedJob.fetch(job_id, self.connection, JSONSerializer))
        except NoSuchJobError:
            self.leases.reject(job_id)
            return False
        except Exception as error:  # whatever a planted hash makes RQ's reader raise
            if isinstance(error, RedisError) and not redis_server.is_wrong_type(error):
                raise
            why = str(error) if isinstance(error, Rejected) else type(error).__name__
            logger.warning("job rejected", job_id=job_id, cause=why)
            self.reject(job_id)
            return False
        lease = self.leases.take(job_id)
        if lease is None:
            return False
        with self._lock:
            self._held[lease] = self._pool.submit(self._run, lease)
        return True

    def reject(self, job_id: str) -> None:
        """Fail the record of a job that must not run, if there is one, and delete its RQ job.

        Raises `redis.RedisError` where Redis does not answer; it is rejected again then.
        """
        claim = Claim(job_id, uuid4().hex)
        if self._transitions.claim(claim, self.name):
            self._transitions.fail(claim, _REJECTED, JobMetrics())
        self.leases.reject(job_id)

    def _dequeue(self) -> str | None:
        if not self._accepting():
            self._stop.wait(RETRY_SECONDS)
            return None
        job_id = self.leases.dequeue(DEQUEUE_SECONDS)
        if job_id is not None and (self._stop.is_set() or not self._accepting()):
            self.leases.undo_dequeue(job_id)
            return None
        return job_id

    def _run(self, lease: Lease) -> None:
        log = logger.bind(job_id=lease.job_id)
        try:
            outcome = self._task(lease.job_id, self._abort)
            retry.with_backoff(
                lambda: self._settle(lease, outcome),
                RedisError,
                interrupt=self._abort,
                on_error=lambda error: log.warning(
                    "job not settled with RQ yet", cause=redis_server.explain(error)
                ),
            )
        except retry.Interrupted:
            log.warning("job not settled; its lease will run out")
        except Exception:
            log.exception("job not settled; its lease will run out")
        finally:
            with self._lock:
                self._held.pop(lease, None)
            self._slots.release()

    def _settle(self, lease: Lease, outcome: TaskOutcome) -> None:
        if outcome is TaskOutcome.ENDED:
            self.leases.end(lease)
        elif outcome is TaskOutcome.RETURNED:
            self.leases.requeue(lease)
        elif outcome is TaskOutcome.NOT_ELIGIBLE:
            # At the front, it would block the jobs that this worker can run.
            self.leases.requeue(lease, to_front=False)
        else:
            self.leases.release(lease)

    def _drain(self, drain_seconds: float) -> None:
        logger.info(
            "draining: no more jobs are taken", running=len(self.held), drain_seconds=drain_seconds
        )
        self._wait_for_jobs(drain_seconds, unless=self._abort)
        self._abort.set()
        self._wait_for_jobs(HAND_BACK_SECONDS)
        self._pool.shutdown(wait=False, cancel_futures=True)
        try:
            self.register_death()  # type: ignore[no-untyped-call]  # rq
        except RedisError as error:
            logger.warning("worker not deregistered from RQ", cause=redis_server.explain(error))

    def _wait_for_jobs(self, seconds: float, unless: threading.Event | None = None) -> None:
        until = time.monotonic() + seconds
        while self.held and time.monotonic() < until and not (unless and unless.is_set()):
            time.sleep(0.05)
