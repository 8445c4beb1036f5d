"""Embeddings are shared through Redis and do not fill it."""

import time

from redis import Redis

from service.core import redis_keys
from workers.embedding_store import RedisEmbeddingStore


def test_embeddings_are_shared_through_redis(redis: Redis) -> None:
    store, other = (RedisEmbeddingStore(redis, keep_seconds=60, most_bytes=99) for _ in range(2))
    assert store.get("a") is None
    store.put("a", b"\x00\xff")
    assert other.get("a") == b"\x00\xff"


def test_embeddings_do_not_fill_redis(redis: Redis) -> None:
    store = RedisEmbeddingStore(redis, keep_seconds=60, most_bytes=100)

    def held() -> str:
        return "".join(name for name in "abcdef" if redis.hexists(redis_keys.EMBEDDINGS, name))

    for number, name in enumerate("abc"):
        store.put(name, bytes(30))
        redis.zadd(redis_keys.EMBEDDINGS_LAST_USE, {name: time.time() - 10 + number})
    store.get("a")
    store.put("a", bytes(30))
    assert held() == "abc", "one that comes again takes no more memory"
    store.put("d", bytes(30))
    assert held() == "acd", "the one used longest ago is removed"
    store.put("e", bytes(101))
    assert held() == "acd", "one that is too large is not kept"
    redis.zadd(redis_keys.EMBEDDINGS_LAST_USE, {"c": 1})
    store.put("f", bytes(40))
    assert held() == "adf"
    assert int(redis.get(redis_keys.EMBEDDINGS_TOTAL_BYTES)) == 100


def test_embedding_store_without_redis_is_only_slower() -> None:
    store = RedisEmbeddingStore(Redis(port=1, retry=None), keep_seconds=60, most_bytes=99)
    store.put("a", b"x")
    assert store.get("a") is None
