"""Who is calling, and may they? Decided from the request's headers alone.

Without any key configured, callers are anonymous where that is allowed; as soon as one is, all
that has to do with jobs needs a key. Models, health, metrics and docs never ask for one. What a
key may do stands in `service/api_keys.py`.
"""

import ipaddress
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio as aioredis

from service import api_keys
from service.api_keys import ApiKey
from service.core import redis_keys
from service.core.errors import Unauthorized
from service.core.settings import Settings

REMEMBERED_SECONDS: Final = 2.0
"""A revoked key is refused after this time at the latest."""
ANONYMOUS: Final = "anonymous"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that binds to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def anonymous_allowed(settings: Settings) -> bool:
    """Whether callers without a key are served while no key is configured."""
    return settings.allow_anonymous or is_loopback(settings.host)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request; `owner` is what their jobs are filed under."""

    owner: str = ANONYMOUS
    key: ApiKey | None = None


class Gate:
    """Tells callers by their keys. Raises `redis.RedisError` where Redis is away."""

    def __init__(
        self,
        redis: "aioredis.Redis",
        *,
        allow_anonymous: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._allow_anonymous = allow_anonymous
        self._clock = clock
        self._known: dict[str, tuple[float, ApiKey]] = {}
        self._open: tuple[float, bool] = (0.0, False)

    async def admit(self, headers: Mapping[str, str]) -> Caller:
        """The caller behind these headers. Raises `Unauthorized`."""
        key = _credential(headers)
        if key is None:
            if self._allow_anonymous and await self._no_keys():
                return Caller()
            raise Unauthorized("This needs an API key: Authorization: Bearer KEY")
        record = await self._find(key)
        if record is None or not record.is_valid(self._clock()):
            raise Unauthorized("This API key is unknown, revoked or expired")
        return Caller(record.id, record)

    async def _find(self, key: str) -> ApiKey | None:
        key_id = api_keys.key_id(key)
        if key_id is None:
            return None
        now = self._clock()
        read_at, record = self._known.get(key_id, (0.0, None))
        if record is None or now - read_at > REMEMBERED_SECONDS:
            self._known.pop(key_id, None)
            text: Any = await self._redis.hget(redis_keys.API_KEYS, key_id)
            if text is None:
                return None
            record = ApiKey.model_validate_json(text)
            self._known[key_id] = (now, record)
        return record if api_keys.matches(key, record) else None

    async def _no_keys(self) -> bool:
        now = self._clock()
        read_at, empty = self._open
        if now - read_at > REMEMBERED_SECONDS:
            empty = not await self._redis.exists(redis_keys.API_KEYS)
            self._open = (now, empty)
        return empty


def _credential(headers: Mapping[str, str]) -> str | None:
    """The key that a request carries; an empty text where it is of another scheme."""
    authorization = headers.get("authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""
    return headers.get("x-api-key")
