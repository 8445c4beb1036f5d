"""Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07): one job however often it is sent.

A first request is marked as being taken in; the mark becomes the job's id in the transaction that
makes the job, so there is no moment in which a crash could make two jobs of one key, or none.
"""

import asyncio
import hashlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import redis
import redis.asyncio as aioredis

from service.core import redis_keys, scripts
from service.core.errors import (
    FieldError,
    IdempotencyInProgress,
    IdempotencyMismatch,
    InvalidField,
)
from service.submission.fields import Fields
from service.submission.form import Upload

PENDING_SECONDS: Final = 15
"""After a crash a key can be used again after this time at the latest."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A request that is being taken in under a key."""

    name: str
    token: str
    fingerprint: str


def read_key(headers: Mapping[str, str]) -> str | None:
    """The header's value. Raises `InvalidField` for one that is empty, too long or not ASCII."""
    value = headers.get("idempotency-key")
    if value is None:
        return None
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", value):
        message = "1 to 255 visible ASCII characters"
        raise InvalidField(
            f"Idempotency-Key: {message}", errors=[FieldError("Idempotency-Key", message)]
        )
    return value


def fingerprint(fields: Fields, files: Mapping[str, Sequence[Upload]]) -> str:
    """Of what a body means: the fields as understood and the bytes of the files, in order."""
    meaning = {
        "fields": fields.model_dump(mode="json"),
        "files": {name: [one.sha256 for one in uploads] for name, uploads in files.items()},
    }
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


class Idempotency:
    """The marks of all keys. Methods raise `redis.RedisError` where Redis is away."""

    def __init__(self, redis: "aioredis.Redis", *, kept_seconds: int) -> None:
        self._redis = redis
        self._kept = kept_seconds
        self._begin = redis.register_script(scripts.load("idempotency_begin"))
        self._abandon = redis.register_script(scripts.load("idempotency_abandon"))

    async def begin(self, owner: str, key: str, fingerprint: str) -> Mark | str:
        """Begin to take a request in, or the id of the job that it was made into before.

        Raises `IdempotencyInProgress` while another one is taken in, `IdempotencyMismatch` for
        another body.
        """
        name = redis_keys.idempotency(owner, hashlib.sha256(key.encode()).hexdigest())
        return await self._claim(Mark(name, secrets.token_hex(16), fingerprint))

    async def renew(self, mark: Mark) -> None:
        """Make sure that nobody else has begun meanwhile. Raises as `begin`."""
        if isinstance(await self._claim(mark), str):
            raise IdempotencyInProgress(
                "Another request with this key was faster", retry_after_seconds=1
            )

    @asynccontextmanager
    async def kept(self, mark: Mark | None) -> AsyncIterator[None]:
        """Keep a mark for as long as the context takes. What fails here, `renew` will tell."""
        keeper = asyncio.create_task(self._keep(mark)) if mark else None
        try:
            yield
        finally:
            if keeper is not None:
                keeper.cancel()
                await asyncio.wait([keeper])

    async def _keep(self, mark: Mark) -> None:
        while True:
            await asyncio.sleep(PENDING_SECONDS / 3)
            with suppress(IdempotencyInProgress, redis.RedisError):
                await self._claim(mark)

    async def abandon(self, mark: Mark) -> None:
        """Free the key of a request that came to nothing."""
        await self._abandon(keys=[mark.name], args=[mark.token])

    def bind(self, mark: Mark, job_id: str, pipeline: Any) -> None:
        """Let the key stand for a job, in the transaction that makes the job."""
        pipeline.hset(mark.name, mapping={"fingerprint": mark.fingerprint, "job": job_id})
        pipeline.hdel(mark.name, "token")
        pipeline.expire(mark.name, self._kept)

    async def _claim(self, mark: Mark) -> Mark | str:
        answer: Any = await self._begin(
            keys=[mark.name], args=[mark.token, mark.fingerprint, PENDING_SECONDS]
        )
        if answer == "mismatch":
            raise IdempotencyMismatch("This Idempotency-Key came before with another body")
        if answer == "pending":
            raise IdempotencyInProgress(
                "The first request with this key is still being taken in", retry_after_seconds=1
            )
        return mark if answer == "begun" else str(answer)
