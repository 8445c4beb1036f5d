"""Fixtures that every test may use: a real Redis process, storage folders, a tiny model."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from redis import Redis

from service.cli.redis_server import RedisServer

DATABASES = 16


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
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model of the public layout with very small random weights."""
    from training import tiny  # noqa: PLC0415  torch is imported only where a test needs it

    return tiny.build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_catalog(tiny_model: Path) -> Path:
    """Path of a models.yaml that serves the tiny model as `tiny`."""
    adapter = {"path": "tiny", "subfolder": "adapters", "image_encoder": "image_encoder"}
    entry = {
        "title": "Random weights",
        "base": {"path": "tiny"},
        "adapters": {
            "base": {**adapter, "weight_name": "ip-adapter.safetensors"},
            "plus": {**adapter, "weight_name": "ip-adapter-plus.safetensors"},
        },
        "controlnets": {"outline": {"path": "tiny/controlnets/outline"}},
        "limits": {"min_size": 64, "max_size": 256, "max_pixels": 65536, "max_steps": 100},
        "defaults": {"width": 64, "height": 64, "adapter": "base", "steps": 4},
        "warm_sizes": [[64, 64]],
    }
    path = tiny_model.parent / "models.yaml"
    path.write_text(yaml.safe_dump({"default": "tiny", "models": {"tiny": entry}}))
    return path


@pytest.fixture
def storage_url(tmp_path: Path) -> str:
    """URL of an empty storage folder."""
    folder = tmp_path / "storage"
    folder.mkdir()
    return folder.as_uri()
