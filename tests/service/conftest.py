"""A running API (a real process, a real Redis, a storage folder) and a hand that plays worker."""

import base64
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from redis import Redis

from service.api_keys import KEYS_MARK
from service.cli import processes
from service.cli.processes import RedisServer
from service.core import redis_keys
from service.core.job import JobMetrics, StoredImage
from service.core.storage import OWNER_MARK, Storage
from service.core.transitions import Claim, Transitions
from service.core.worker_registry import register, unregister
from tests import corpus
from tests.running import KEEP, Running, start_api, until
from tests.worker_info import worker_info

WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"s" * 24).decode()
PNG = corpus.saved(corpus.picture(), "PNG")
PASSING = (
    *(redis_keys.WORKERS, redis_keys.worker(""), redis_keys.rate("")),
    *(redis_keys.SWEEP, redis_keys.STORAGE_OWNER, redis_keys.API_KEYS_REVOKED),
)
"""What Redis keys begin with that belong to no job."""


@dataclass(frozen=True)
class Api:
    """The running API and all that it writes to."""

    client: httpx.Client
    running: Running
    redis: Redis
    redis_url: str
    folder: Path
    storage: Storage
    transitions: Transitions

    def post(self, fields: dict[str, object] | None = None, **options: object) -> httpx.Response:
        """POST /generate with one picture and these fields; `files` replaces the picture."""
        options.setdefault("files", [("image", ("a.png", PNG, "image/png"))])
        texts = {name: str(value) for name, value in (fields or {}).items()}
        return self.client.post("/generate", data=texts, **options)

    def job(self, fields: dict[str, object] | None = None) -> str:
        """The id of a new job."""
        answer = self.post(fields)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def claim(self, job_id: str) -> Claim:
        """Take the job as a worker would."""
        claim = Claim(job_id, uuid.uuid4().hex)
        assert self.transitions.claim(claim, "hand")
        return claim

    def finish(self, job_id: str, data: bytes = PNG, images: int = 1) -> None:
        """Do the job as a worker would: pictures first, then the state."""
        claim = self.claim(job_id)
        stored = []
        for number in range(images):
            key = redis_keys.result(job_id, f"{number}.png")
            self.storage.put(key, data, "image/png")
            stored.append(
                StoredImage(
                    key=key,
                    content_type="image/png",
                    width=24,
                    height=16,
                    seed=7 + number,
                    sha256=hashlib.sha256(data).hexdigest(),
                    size_bytes=len(data),
                )
            )
        assert self.transitions.succeed(claim, tuple(stored), JobMetrics(total_seconds=1), 30)

    def leftovers(self) -> tuple[set[str], set[str]]:
        """Every stored object and every Redis key that belongs to a job."""
        files = {
            str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()
        }
        names = {key.decode() for key in self.redis.keys("*")}
        return (
            {file for file in files if not file.startswith(("health/", OWNER_MARK, KEYS_MARK))},
            {name for name in names if not name.startswith(PASSING)},
        )


def _answers(running: Running) -> bool:
    assert running.process.poll() is None, running.tail()
    try:
        return httpx.get(f"{running.url}/healthz/live", timeout=5).status_code in (200, 404)
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def make_api(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Running]:
    """Starts one more API process with given settings."""

    def make(**settings: object) -> Running:
        log = tmp_path_factory.mktemp("api") / "log"
        running = start_api(settings, log)
        # A 404 tells as well that it serves: then its health has a port of its own.
        until(lambda: _answers(running), what="the API")
        return running

    return make


@pytest.fixture(scope="session")
def api(
    tmp_path_factory: pytest.TempPathFactory, make_api: Callable[..., Running]
) -> Iterator[Api]:
    """One API, with a Redis of its own, for all tests. No worker: `Api.finish` plays it."""
    folder = tmp_path_factory.mktemp("storage")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    url = f"redis://127.0.0.1:{server.port}/0"
    redis = Redis.from_url(url)
    with (
        make_api(
            redis_url=url, storage_url=folder.as_uri(), webhook_secret=WEBHOOK_SECRET
        ) as running,
        httpx.Client(base_url=running.url, timeout=30, limits=KEEP) as client,
        redis,
    ):
        yield Api(
            client=client,
            running=running,
            redis=redis,
            redis_url=url,
            folder=folder,
            storage=Storage.open(folder.as_uri(), presigned_url_seconds=60),
            transitions=Transitions(
                redis, retention_seconds=3600, tombstone_seconds=3600, max_attempts=3
            ),
        )
    server.stop()


def announce_warm(redis: Redis, *, row_steps_per_second: float) -> None:
    """Let a worker say that it is warm, however long the test takes."""
    register(
        redis,
        worker_info(
            name="hand",
            slots=4,
            row_steps_per_second=row_steps_per_second,
        ),
    )
    redis.persist(redis_keys.worker("hand"))


@pytest.fixture
def warm_worker(api: Api) -> Iterator[None]:
    """A worker that says it does 20 row steps a second."""
    announce_warm(api.redis, row_steps_per_second=20.0)
    yield
    unregister(api.redis, "hand")


def problem(answer: httpx.Response, status: int) -> dict[str, object]:
    """The problem document of an answer, checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["type"].startswith("urn:imageprompt:error:")
    assert body["instance"] == answer.headers["x-request-id"]
    assert body["instance"].startswith("urn:uuid:")
    return dict(body)


def sse(text: str) -> list[tuple[str, str, dict[str, object]]]:
    """(id, event, data) of each event in a stream."""
    events = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in lines:
            events.append((lines["id"], lines["event"], json.loads(lines["data"])))
    return events


@pytest.fixture
def free_port() -> int:
    """A port that nothing listens on."""
    return processes.free_port()
