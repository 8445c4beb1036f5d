"""What the worker's tests share: records in a real Redis, uploads in a real folder."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from PIL import Image
from redis import Redis
from rq import Queue

from service.core import redis_keys
from service.core.job import Job, Status
from service.core.metrics import WorkerMetrics
from service.core.param_types import StoredUpload
from service.core.queue import enqueue, open_queue
from service.core.storage import Storage
from service.core.transitions import Transitions
from tests.requests import generate_request
from tests.workers.fake_engine import FakeEngine
from workers.eligibility import Eligibility, Quarantine
from workers.leases import Leases
from workers.progress import ProgressWriter
from workers.task import Collaborators

QUEUE = "test"
MAX_ATTEMPTS = 3


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return open_queue(QUEUE, redis)


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics()


@pytest.fixture
def ends(metrics: WorkerMetrics) -> Callable[[], dict[str, float]]:
    """Jobs that the worker says it ended, by final state."""

    def count() -> dict[str, float]:
        samples = [sample for family in metrics.registry.collect() for sample in family.samples]
        return {
            sample.labels["status"]: sample.value
            for sample in samples
            if sample.name == "imageprompt_jobs_total" and sample.labels["model"] == "tiny"
        }

    return count


@pytest.fixture
def api_transitions(redis: Redis) -> Transitions:
    """Those of another process, which counts for itself."""
    return Transitions(redis, retention_seconds=60, tombstone_seconds=60, max_attempts=MAX_ATTEMPTS)


@pytest.fixture
def transitions(redis: Redis, metrics: WorkerMetrics) -> Transitions:
    return Transitions(
        redis,
        retention_seconds=60,
        tombstone_seconds=60,
        max_attempts=MAX_ATTEMPTS,
        on_end=metrics.ends.count,
    )


@pytest.fixture
def storage(storage_url: str) -> Storage:
    return Storage.open(storage_url, presigned_url_seconds=60)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def shared(
    redis: Redis,
    storage: Storage,
    transitions: Transitions,
    engine: FakeEngine,
    metrics: WorkerMetrics,
) -> Collaborators:
    return Collaborators(
        redis=redis,
        storage=storage,
        transitions=transitions,
        submit=engine.submit,
        eligibility=Eligibility(redis, engine.serves, engine.models),
        progress=ProgressWriter(redis, transitions),
        quarantine=Quarantine(),
        metrics=metrics,
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
        key = redis_keys.upload(job_id, "image-0.png")
        storage.put(key, out.getvalue(), "image/png")
        digest = hashlib.sha256(out.getvalue()).hexdigest()
        prompt = StoredUpload(key=key, sha256=digest, pixels_sha256=digest, width=8, height=8)
        request = generate_request(image=(prompt,), **changes)
        job = Job(id=job_id, owner="test", status=Status.QUEUED, request=request, created_at=1.0)
        enqueue(queue, transitions, job)
        return job

    return add


@pytest.fixture
def read(redis: Redis) -> Callable[[str], Job]:
    """Read a job's record."""

    def fetch(job_id: str) -> Job:
        fields = redis.hgetall(redis_keys.job(job_id))
        return Job.from_hash({name.decode(): value.decode() for name, value in fields.items()})

    return fetch


@pytest.fixture
def results(storage_url: str) -> Callable[[str], list[Path]]:
    """Files under which pictures of a job are stored."""
    folder = Path(storage_url.removeprefix("file://"))
    return lambda job_id: sorted((folder / "results" / job_id).glob("*"))


@pytest.fixture
def leases(queue: Queue) -> Leases:
    return Leases(queue, worker_name="one", lease_seconds=6)


@pytest.fixture
def later(redis: Redis):
    """Let every lease have less time left, as if seconds had gone by."""

    def move(seconds: float) -> None:
        for member in redis.zrange("rq:wip:test", 0, -1):
            redis.zincrby("rq:wip:test", -seconds, member)

    return move
