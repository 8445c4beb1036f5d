"""Fixtures that every test may use: real Redis and S3 servers, storage folders, a tiny model."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis import Redis

from service.cli.processes import RedisServer
from tests import buckets
from tests.buckets import Bucket
from tests.tiny_catalog import write_catalog

DATABASES = 16

# The same examples in every run, however slow the machine; `pytest --hypothesis-profile=default`
# draws new ones.
settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small operators on few cores are fastest on one thread, and always come out the same."""
    if "torch" in sys.modules:  # what does not need it is not to wait for its import
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis process of its own for this test run."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def fresh_redis_url(redis_server: RedisServer) -> Callable[[], str]:
    """Call it for the URL of an empty database of the shared server (each of 16 in turn)."""
    numbers = itertools.cycle(range(DATABASES))

    def make() -> str:
        url = f"redis://127.0.0.1:{redis_server.port}/{next(numbers)}"
        with Redis.from_url(url) as client:
            client.flushdb()
        return url

    return make


@pytest.fixture
def redis_url(fresh_redis_url: Callable[[], str]) -> str:
    """URL of a Redis database that is empty when the test starts."""
    return fresh_redis_url()


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client (bytes in, bytes out) of that database."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(scope="session")
def tiny_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a models.yaml that serves a model of very small random weights as `tiny`."""
    return write_catalog(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_model(tiny_catalog: Path) -> Path:
    """Folder of that model, in the public layout."""
    return tiny_catalog.parent / "tiny"


@pytest.fixture
def storage_url(tmp_path: Path) -> str:
    """URL of an empty storage folder."""
    folder = tmp_path / "storage"
    folder.mkdir()
    return folder.as_uri()


@pytest.fixture(scope="session")
def make_bucket() -> Iterator[Callable[[], Bucket]]:
    """Call it for an empty bucket on one S3 server of this test run."""
    with buckets.serving() as make:
        yield make


@pytest.fixture
def bucket(make_bucket: Callable[[], Bucket], monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket that this process and those it starts can open."""
    monkeypatch.setenv("AWS_REGION", buckets.REGION)
    return make_bucket()
