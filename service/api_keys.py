"""API keys: created, stored as hashes in Redis, and authenticated by a request's headers.

While no key exists, callers are anonymous where that is allowed; as soon as there is one, all
requests about jobs need a key. Models, health, metrics and docs never do. A Redis that loses the
keys does not open the service: the storage keeps a mark that there were keys, and only revoking the
last one makes callers anonymous again.
"""

import base64
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final

import redis.asyncio as aioredis
import structlog
from anyio import fail_after
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from redis import Redis
from redis.exceptions import RedisError

from service.browser_access import BrowserAccess
from service.core import redis_keys
from service.core.errors import Unauthorized
from service.core.job import Moment
from service.core.settings import API_KEY, Settings
from service.core.storage import ObjectMissing, Storage, StorageError

CACHE_SECONDS: Final = 2.0
"""After this time at the latest, a revoked key is refused."""
RECHECK_SECONDS: Final = 0.25
"""The same for requests that wait, which are checked only so often."""
MARK_CACHE_SECONDS: Final = 60.0
"""How long an absent mark is taken to be absent."""
MARK_SECONDS: Final = 2.0
"""How long the storage may take to tell."""
KEYS_MARK: Final = "access/api-keys-exist"
"""Storage key of the mark that there have been API keys."""
BOOTSTRAP: Final = "bootstrap"
"""Name of the key that comes from the settings."""
ANONYMOUS: Final = "anonymous"
"""Owner of the jobs of callers without a key."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Scope(StrEnum):
    """What a key may do."""

    GENERATE = "generate"
    READ = "read"
    MANAGE = "manage"
    """Cancel and delete jobs."""


class ApiKey(BaseModel):
    """One key's record. The key itself is not stored. Times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, serialize_by_alias=True)

    id: str
    name: str
    sha256: str
    scopes: Annotated[tuple[Scope, ...], Field(alias="rights")]
    """Stored as `rights`, as in the first release."""
    requests_per_minute: Annotated[int, Field(gt=0)] | None = None
    max_jobs: Annotated[int, Field(gt=0)] | None = None
    """Jobs that may be queued or running at once."""
    created_at: Moment
    expires_at: Moment | None = None
    webhook_secret: str
    """Signs this key's webhooks (Standard Webhooks: `whsec_` and base64)."""

    @field_validator("scopes", mode="before")
    @classmethod
    def _known_scopes(cls, scopes: Any) -> Any:
        """A right that this release does not know gives nothing."""
        known = set(Scope)
        if not isinstance(scopes, list):
            return scopes
        return [one for one in scopes if isinstance(one, str) and one in known]

    def is_valid(self, now: float) -> bool:
        """Whether the key has not expired."""
        return self.expires_at is None or now < self.expires_at


def make_key(
    name: str,
    *,
    scopes: Sequence[Scope] = tuple(Scope),
    requests_per_minute: int | None = None,
    max_jobs: int | None = None,
    lifetime_seconds: float | None = None,
    now: float,
) -> tuple[str, ApiKey]:
    """A new key, shown once, and its record."""
    key = f"ip_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
    record = ApiKey(
        id=str(key_id(key)),
        name=name,
        sha256=digest(key),
        scopes=tuple(scopes),
        requests_per_minute=requests_per_minute,
        max_jobs=max_jobs,
        created_at=now,
        expires_at=None if lifetime_seconds is None else now + lifetime_seconds,
        webhook_secret=_webhook_secret(),
    )
    return key, record


def digest(key: str) -> str:
    """The stored hash of a key. A key has 256 random bits, so it needs no slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_id(key: str) -> str | None:
    """The id of a key; `None` for what cannot be one."""
    match = API_KEY.fullmatch(key)
    return match[1] if match else None


def matches(key: str, record: ApiKey) -> bool:
    """Whether a record is that of `key`, compared in constant time."""
    return hmac.compare_digest(digest(key).encode(), record.sha256.encode())


def bootstrap_record(key: str, *, now: float) -> ApiKey:
    """The record of IMAGEPROMPT_BOOTSTRAP_KEY: all scopes, no limits."""
    return ApiKey(
        id=str(key_id(key)),
        name=BOOTSTRAP,
        sha256=digest(key),
        scopes=tuple(Scope),
        created_at=now,
        webhook_secret=_webhook_secret(),
    )


def _webhook_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def save(redis: "Redis", record: ApiKey) -> None:
    """Store a record. Raises `redis.RedisError`."""
    redis.register_script(redis_keys.load_script("api_key_save"))(
        keys=[redis_keys.API_KEYS, redis_keys.API_KEYS_REVOKED],
        args=[record.id, record.model_dump_json()],
    )


def revoke(redis: "Redis", record_id: str) -> bool:
    """Delete a key; whether there was one. Raises `redis.RedisError`."""
    return bool(
        redis.register_script(redis_keys.load_script("api_key_revoke"))(
            keys=[redis_keys.API_KEYS, redis_keys.API_KEYS_REVOKED], args=[record_id]
        )
    )


def list_keys(redis: "Redis") -> list[ApiKey]:
    """All records, oldest first. Raises `redis.RedisError`."""
    texts: Any = redis.hvals(redis_keys.API_KEYS)
    records = [record for text in texts if (record := _parse(text)) is not None]
    return sorted(records, key=lambda record: record.created_at)


def _parse(text: bytes | str) -> ApiKey | None:
    """A record; `None` for a damaged one, which is no key."""
    try:
        return ApiKey.model_validate_json(text)
    except ValidationError as error:
        # Neither pydantic's text nor its cause is logged: both quote the record, with its secret.
        causes = error.errors(include_input=False, include_url=False, include_context=False)
        log.error(  # noqa: TRY400
            "the record of an API key is damaged",
            fields=sorted({str(cause["loc"][0]) for cause in causes if cause["loc"]}),
            causes=sorted({cause["type"] for cause in causes}),
        )
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that binds to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def anonymous_allowed(settings: Settings) -> bool:
    """Whether callers without a key are served while no key is configured."""
    if settings.require_api_keys or settings.bootstrap_key is not None:
        return False
    return settings.allow_anonymous or is_loopback(settings.host)


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request; `owner` identifies their jobs."""

    owner: str = ANONYMOUS
    key: ApiKey | None = None


class KeysMark:
    """A mark in the storage that API keys exist, which Redis cannot lose together with them."""

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = storage
        self._clock = clock
        self._written = False
        self._write_at = 0.0
        self._absent_at: float | None = None
        """When it was last seen to be absent."""

    async def write(self) -> None:
        """Make sure that it is there; where the storage does not answer, at a later call."""
        self._absent_at = None
        if self._written or self._clock() < self._write_at:
            return
        try:
            with fail_after(MARK_SECONDS):
                await self._storage.put_async(KEYS_MARK, b"", "text/plain")
        except (StorageError, TimeoutError):
            self._write_at = self._clock() + MARK_CACHE_SECONDS
            log.warning("the mark that API keys exist is not stored yet", mark=KEYS_MARK)
        else:
            self._written = True

    async def exists(self) -> bool:
        """Whether there have been keys, as the storage said within `MARK_CACHE_SECONDS`.

        A storage that does not answer changes nothing of what this process has seen before. Raises
        `StorageError` where it has seen nothing yet.
        """
        now = self._clock()
        if self._absent_at is not None and now - self._absent_at < MARK_CACHE_SECONDS:
            return False
        try:
            with fail_after(MARK_SECONDS):
                await self._storage.get_async(KEYS_MARK)
        except ObjectMissing:
            self._absent_at = now
            return False
        except (StorageError, TimeoutError):
            if self._absent_at is None:
                raise StorageError("whether API keys exist cannot be read") from None
            return False
        self._absent_at = None
        return True


class Authenticator:
    """Authenticates callers by their keys."""

    def __init__(
        self,
        redis: "aioredis.Redis",
        *,
        anonymous: BrowserAccess | None,
        mark: KeysMark,
        on_missing: Callable[[bool], None] = lambda _missing: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`anonymous` checks callers without a key; without it there are none.

        `on_missing` is told whether Redis has lost the keys, each time that it is looked at.
        """
        self._redis = redis
        self._anonymous = anonymous
        self._mark = mark
        self._on_missing = on_missing
        self._clock = clock
        self._known: dict[str, tuple[float, ApiKey]] = {}
        self._open: tuple[float, bool] = (0.0, False)

    async def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """The caller behind these headers.

        Raises `Unauthorized`, `Forbidden` and `redis.RedisError`.
        """
        key = _credential(headers)
        record = await self._find(key) if key else None
        if record is not None and record.is_valid(self._clock()):
            return Caller(record.id, record)
        # While no key exists, clients that insist on sending one may send any.
        if key != "" and self._anonymous is not None and await self._no_keys():
            self._anonymous.check(headers)
            return Caller()
        if key is None:
            raise Unauthorized
        raise Unauthorized("The API key is unknown, revoked or expired")

    async def key_owner(self, record_id: str) -> Caller:
        """The caller with the key of this id, for whom a URL was signed. Raises as above."""
        record = await self._read(record_id)
        if record is None or not record.is_valid(self._clock()):
            raise Unauthorized("The API key of the signed URL is revoked or expired")
        return Caller(record.id, record)

    async def is_valid(self, caller: Caller) -> bool:
        """Whether a caller who was authenticated before still would be. Raises as above."""
        if caller.key is None:
            return self._anonymous is not None and await self._no_keys()
        record = await self._read(caller.key.id, RECHECK_SECONDS)
        return record is not None and record.is_valid(self._clock())

    async def check(self, caller: Caller) -> None:
        """Raise `Unauthorized` where a caller who was authenticated before no longer would be.

        Nobody is refused because Redis or the storage does not respond.
        """
        try:
            valid = await self.is_valid(caller)
        except (RedisError, StorageError):
            return
        if not valid:
            raise Unauthorized("The API key was revoked or has expired" if caller.key else None)

    async def _find(self, key: str) -> ApiKey | None:
        record_id = key_id(key)
        record = None if record_id is None else await self._read(record_id)
        return record if record is not None and matches(key, record) else None

    async def _read(self, record_id: str, max_age: float = CACHE_SECONDS) -> ApiKey | None:
        now = self._clock()
        read_at, record = self._known.get(record_id, (0.0, None))
        if record is None or now - read_at > max_age:
            self._known.pop(record_id, None)
            text: Any = await self._redis.hget(redis_keys.API_KEYS, record_id)
            if text is None:
                return None
            record = _parse(text)
            if record is None:
                return None
            self._known[record_id] = (now, record)
            await self._mark.write()
        return record

    async def _no_keys(self) -> bool:
        now = self._clock()
        read_at, empty = self._open
        if now - read_at > CACHE_SECONDS:
            empty = await self._open_to_anonymous()
            self._open = (now, empty)
        return empty

    async def _open_to_anonymous(self) -> bool:
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.exists(redis_keys.API_KEYS)
            pipeline.exists(redis_keys.API_KEYS_REVOKED)
            keys, revoked = await pipeline.execute()
        if keys:
            await self._mark.write()
        missing = not keys and not revoked and await self._mark.exists()
        self._on_missing(missing)
        if missing:
            log.error(
                "Redis has lost the API keys: no request is served without one. Restore Redis, or "
                "create new keys; to serve without keys, delete the mark in the storage",
                mark=KEYS_MARK,
            )
        return not keys and not missing


def _credential(headers: Mapping[str, str]) -> str | None:
    """The key of a request; empty where the authorization scheme is another one."""
    authorization = headers.get("authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""
    return headers.get("x-api-key")
