"""API keys: how they look, how they are kept (as hashes, in Redis), made and found again.

Used by the API and by `imageprompt keys`. It knows nothing of requests.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field
from redis import Redis

from service.core import redis_keys

_KEY: Final = re.compile(r"ip_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


class Right(StrEnum):
    """What a key may do."""

    GENERATE = "generate"
    READ = "read"
    MANAGE = "manage"
    """Cancel and delete jobs."""


class ApiKey(BaseModel):
    """One key's record. The key itself is kept nowhere. Times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    sha256: str
    rights: tuple[Right, ...]
    requests_per_minute: Annotated[int, Field(gt=0)] | None = None
    max_jobs: Annotated[int, Field(gt=0)] | None = None
    """Jobs that may be queued or running at once."""
    created_at: float
    expires_at: float | None = None
    webhook_secret: str
    """Signs this key's webhooks (Standard Webhooks: `whsec_` and base64)."""

    def is_valid(self, now: float) -> bool:
        """Whether the key has not expired."""
        return self.expires_at is None or now < self.expires_at


def make_key(
    name: str,
    *,
    rights: Sequence[Right] = tuple(Right),
    requests_per_minute: int | None = None,
    max_jobs: int | None = None,
    lifetime_seconds: float | None = None,
    now: float,
) -> tuple[str, ApiKey]:
    """A new key, shown once, and its record."""
    key_id = secrets.token_hex(6)
    key = f"ip_{key_id}_{secrets.token_urlsafe(32)}"
    record = ApiKey(
        id=key_id,
        name=name,
        sha256=digest(key),
        rights=tuple(rights),
        requests_per_minute=requests_per_minute,
        max_jobs=max_jobs,
        created_at=now,
        expires_at=None if lifetime_seconds is None else now + lifetime_seconds,
        webhook_secret="whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
    )
    return key, record


def digest(key: str) -> str:
    """What is kept of a key. It has 256 random bits, so a plain hash cannot be guessed back."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_id(key: str) -> str | None:
    """Under which id a key would be kept; `None` for what cannot be one."""
    match = _KEY.fullmatch(key)
    return match[1] if match else None


def matches(key: str, record: ApiKey) -> bool:
    """Whether `key` is the one behind a record, compared in constant time."""
    return hmac.compare_digest(digest(key), record.sha256)


def save(redis: "Redis", record: ApiKey) -> None:
    """Keep a record. Raises `redis.RedisError`."""
    redis.hset(redis_keys.API_KEYS, record.id, record.model_dump_json())


def revoke(redis: "Redis", record_id: str) -> bool:
    """Forget a key; whether there was one. Raises `redis.RedisError`."""
    return bool(redis.hdel(redis_keys.API_KEYS, record_id))


def every(redis: "Redis") -> list[ApiKey]:
    """All records, oldest first. Raises `redis.RedisError`."""
    texts: Any = redis.hvals(redis_keys.API_KEYS)
    records = [ApiKey.model_validate_json(text) for text in texts]
    return sorted(records, key=lambda record: record.created_at)
