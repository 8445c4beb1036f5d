"""What the worker's tests share: records in a real Redis, and an engine of the test's own."""

import hashlib
import io
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from PIL import Image
from redis import Redis
from rq import Queue

from service.core import keys
from service.core.job import Job, Status
from service.core.metrics import WorkerMetrics
from service.core.queue import enqueue, open_queue
from service.core.request import GenerateRequest, ImagePrompt
from service.core.storage import Storage
from service.core.transitions import Transitions
from workers.engine.types import Canceled, EngineJob, EngineResult, Listener
from workers.isolation import Isolation
from workers.reporter import Reporter
from workers.task import Collaborators

QUEUE = "test"
MAX_ATTEMPTS = 3


class FakeTicket:
    """A ticket whose end the test decides."""

    def __init__(self, job: EngineJob, listener: Listener | None) -> None:
        self.job = job
        self.listener = listener
        self.canceled = threading.Event()
        self._done = threading.Event()
        self._end: EngineResult | Exception | None = None

    def cancel(self) -> None:
        self.canceled.set()
        self.finish(Canceled())

    def finish(self, end: EngineResult | Exception) -> None:
        if self._end is None:
            self._end = end
        self._done.set()

    def result(self, timeout: float | None = None) -> EngineResult:
        if not self._done.wait(timeout):
            raise TimeoutError
        if isinstance(self._end, Exception):
            raise self._end
        assert self._end is not None
        return self._end


class FakeEngine:
    """Keeps what is submitted until the test ends it, or ends it at once by `answer`."""

    def __init__(self) -> None:
        self.tickets: list[FakeTicket] = []
        self.answer: Callable[[EngineJob], EngineResult | Exception] | None = None

    def submit(self, job: EngineJob, listener: Listener | None) -> FakeTicket:
        ticket = FakeTicket(job, listener)
        self.tickets.append(ticket)
        if self.answer is not None:
            ticket.finish(self.answer(job))
        return ticket


def result(colour: str = "red", count: int = 1) -> EngineResult:
    """Some finished pictures."""
    images = tuple(Image.new("RGB", (64, 64), colour) for _ in range(count))
    return EngineResult(images, 0.1, 0.2, 0.3, 4, "miss")


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return open_queue(QUEUE, redis)


@pytest.fixture
def transitions(redis: Redis) -> Transitions:
    return Transitions(redis, retention_seconds=60, tombstone_seconds=60, max_attempts=MAX_ATTEMPTS)


@pytest.fixture
def storage(storage_url: str) -> Storage:
    return Storage.open(storage_url, presigned_url_seconds=60)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def shared(
    redis: Redis, storage: Storage, transitions: Transitions, engine: FakeEngine
) -> Collaborators:
    return Collaborators(
        redis=redis,
        storage=storage,
        transitions=transitions,
        submit=engine.submit,
        reporter=Reporter(redis, transitions),
        isolation=Isolation(),
        metrics=WorkerMetrics(),
        worker_name="tester",
        max_attempts=MAX_ATTEMPTS,
    )


@pytest.fixture
def add_job(queue: Queue, transitions: Transitions, storage: Storage) -> Callable[..., Job]:
    """Store an upload and queue a job, as the API does."""

    def add(**changes: object) -> Job:
        job_id = str(uuid4())
        out = io.BytesIO()
        Image.new("RGB", (8, 8), "blue").save(out, "PNG")
        key = keys.upload(job_id, "image-0.png")
        storage.put(key, out.getvalue(), "image/png")
        digest = hashlib.sha256(out.getvalue()).hexdigest()
        prompt = ImagePrompt(key=key, sha256=digest, pixels_sha256=digest, width=8, height=8)
        fields = {
            "model": "tiny",
            "adapter": "base",
            "images": (prompt,),
            "ip_scale": 1.0,
            "width": 64,
            "height": 64,
            "steps": 4,
            "guidance_scale": 1.0,
            "scheduler": "ddim",
            "seed": 7,
        }
        request = GenerateRequest.model_validate(fields | changes)
        job = Job(id=job_id, owner="test", status=Status.QUEUED, request=request, created_at=1.0)
        enqueue(queue, transitions, job)
        return job

    return add


@pytest.fixture
def read(redis: Redis) -> Callable[[str], Job]:
    """Read a job's record."""

    def fetch(job_id: str) -> Job:
        fields = redis.hgetall(keys.job(job_id))
        return Job.from_hash({name.decode(): value.decode() for name, value in fields.items()})

    return fetch


@pytest.fixture
def results(storage_url: str) -> Callable[[str], list[Path]]:
    """Files under which pictures of a job are stored."""
    folder = Path(storage_url.removeprefix("file://"))
    return lambda job_id: sorted((folder / "results" / job_id).glob("*"))
