"""The whole service as real processes: Redis, API, worker, storage, the tiny model."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.stack import Service


@pytest.fixture(scope="module")
def make_service(
    tiny_catalog: Path,
    fresh_redis_url: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Service]]:
    """Services with a Redis database and a storage folder of their own, ended with the module."""
    made = []

    def make(**settings: object) -> Service:
        folder = tmp_path_factory.mktemp("service")
        own = {
            "models": tiny_catalog,
            "redis_url": settings.get("redis_url") or fresh_redis_url(),
            "storage_url": (folder / "storage").as_uri(),
            "worker_slots": 8,
        }
        service = Service(own | settings, folder)
        made.append(service)
        return service

    yield make
    for service in made:
        service.stop()


@pytest.fixture(scope="module")
def service(make_service: Callable[..., Service]) -> Service:
    """A running service with one worker, shared by the module."""
    return make_service().start()
