"""Health that tells the truth, a watchdog that acts on it, and small helpers of the worker."""

import threading
import time

import httpx
import pytest
from prometheus_client import CollectorRegistry
from redis import Redis

from service.core import redis_keys
from workers import retry
from workers.embedding_store import RedisEmbeddingStore
from workers.health import HealthServer
from workers.watchdog import EXIT_STATUS, Watchdog


class Engine:
    alive = True
    last_step_at = 0.0


def test_hung_engine_ends_the_worker() -> None:
    left: list[int] = []
    now = [0.0]
    watchdog = Watchdog(Engine(), step_timeout_seconds=10, clock=lambda: now[0], leave=left.append)
    for second in range(1, 11):
        now[0] = second
        watchdog()
    assert (watchdog.healthy(), left) == (True, [])
    now[0] = 11
    watchdog()
    assert (watchdog.healthy(), left) == (False, [EXIT_STATUS])


def test_worker_that_was_paused_as_a_whole_goes_on() -> None:
    left: list[int] = []
    now = [0.0]
    watchdog = Watchdog(Engine(), step_timeout_seconds=10, clock=lambda: now[0], leave=left.append)
    now[0] = 100
    watchdog()
    assert (watchdog.healthy(), left) == (True, [])
    for second in range(101, 112):
        now[0] = second
        watchdog()
    assert left == [EXIT_STATUS]


def test_dead_engine_ends_the_worker() -> None:
    left: list[int] = []
    engine = Engine()
    engine.alive = False
    Watchdog(engine, step_timeout_seconds=10, clock=lambda: 0, leave=left.append)()
    assert left == [EXIT_STATUS]


def test_health_and_metrics_are_served() -> None:
    state = {"live": True, "ready": False}
    server = HealthServer(
        "127.0.0.1",
        0,
        CollectorRegistry(),
        live=lambda: state["live"],
        ready=lambda: state["ready"],
    )
    url = f"http://127.0.0.1:{server.port}"
    try:
        assert httpx.get(f"{url}/healthz/live").status_code == 200
        assert httpx.get(f"{url}/healthz/ready").status_code == 503
        state.update(live=False)
        assert httpx.get(f"{url}/healthz/live").status_code == 503
        assert httpx.get(f"{url}/metrics").status_code == 200
        assert httpx.get(f"{url}/other").status_code == 404
    finally:
        server.close()


def test_embeddings_are_shared_through_redis(redis: Redis) -> None:
    store, other = (RedisEmbeddingStore(redis, keep_seconds=60, most_bytes=99) for _ in range(2))
    assert store.get("a") is None
    store.put("a", b"\x00\xff")
    assert other.get("a") == b"\x00\xff"


def test_embeddings_do_not_fill_redis(redis: Redis) -> None:
    store = RedisEmbeddingStore(redis, keep_seconds=60, most_bytes=100)

    def held() -> str:
        return "".join(name for name in "abcdef" if redis.exists(redis_keys.embedding(name)))

    for number, name in enumerate("abc"):
        store.put(name, bytes(30))
        redis.zadd(redis_keys.EMBEDDINGS_USED, {name: time.time() - 10 + number})
    store.get("a")
    store.put("a", bytes(30))
    assert held() == "abc", "one that comes again takes no more room"
    store.put("d", bytes(30))
    assert held() == "acd", "the one used longest ago makes room"
    store.put("e", bytes(101))
    assert held() == "acd", "one that is too large is not kept"
    redis.zadd(redis_keys.EMBEDDINGS_USED, {"c": 1})
    redis.delete(redis_keys.embedding("c"))  # as its time to live does
    store.put("f", bytes(40))
    assert held() == "adf"
    assert int(redis.hget(redis_keys.EMBEDDINGS_BYTES, "total")) == 100


def test_embedding_store_without_redis_is_only_slower() -> None:
    store = RedisEmbeddingStore(Redis(port=1, retry=None), keep_seconds=60, most_bytes=99)
    store.put("a", b"x")
    assert store.get("a") is None


def test_patience_ends_when_the_work_is_no_longer_wanted() -> None:
    interrupt = threading.Event()

    def fail() -> None:
        interrupt.set()
        raise OSError

    with pytest.raises(retry.Interrupted):
        retry.persist(fail, OSError, interrupt=interrupt, on_error=lambda _: None)


def test_patience_has_an_end() -> None:
    def fail() -> None:
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        retry.persist(
            fail, OSError, interrupt=threading.Event(), patience_seconds=0, on_error=lambda _: None
        )
