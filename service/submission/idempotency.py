"""Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07): one job per key.

The first request claims its key; the claim becomes the job's id in the transaction that creates
the job, so there is no moment in which a crash could create two jobs for one key, or none.
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
from pydantic import BaseModel

from service.core import redis_keys
from service.core.errors import (
    FieldError,
    IdempotencyInProgress,
    IdempotencyMismatch,
    InvalidField,
)
from service.submission.form import Upload

PENDING_SECONDS: Final = 15
"""After a crash, a key can be used again after this time."""


@dataclass(frozen=True, slots=True)
class IdempotencyClaim:
    """A key that belongs to one request while that is being processed."""

    name: str
    token: str
    fingerprint: str


def read_key(headers: Mapping[str, str]) -> str | None:
    """The header's value. Raises `InvalidField` for one that is empty, too long or not ASCII."""
    value = headers.get("idempotency-key")
    if value is None:
        return None
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", value):
        message = "must be 1 to 255 visible ASCII characters"
        raise InvalidField.of(FieldError("Idempotency-Key", message))
    return value


def fingerprint(sent: BaseModel, files: Mapping[str, Sequence[Upload]]) -> str:
    """Identify what a body asks for: its parameters as parsed, and the bytes of its files.

    Parameters left at their defaults do not count, so that a release with one more parameter
    gives the same fingerprint.
    """
    meaning = {
        "fields": sent.model_dump(mode="json", exclude_defaults=True),
        "files": {name: [one.sha256 for one in uploads] for name, uploads in files.items()},
    }
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


class Idempotency:
    """The claims of all keys. Methods raise `redis.RedisError` where Redis does not respond."""

    def __init__(self, redis: "aioredis.Redis", *, kept_seconds: int) -> None:
        self._redis = redis
        self._kept = kept_seconds
        self._begin = redis.register_script(redis_keys.load_script("idempotency_begin"))
        self._abandon = redis.register_script(redis_keys.load_script("idempotency_abandon"))

    async def begin(self, owner: str, key: str, fingerprint: str) -> IdempotencyClaim | str:
        """Claim a key for a request; or the id of the job that the key stands for already.

        Raises `IdempotencyInProgress` while another request holds the key, `IdempotencyMismatch`
        for another body.
        """
        name = redis_keys.idempotency(owner, hashlib.sha256(key.encode()).hexdigest())
        claim = IdempotencyClaim(name, secrets.token_hex(16), fingerprint)
        return await self._claim(claim)

    async def renew(self, claim: IdempotencyClaim) -> None:
        """Make sure that no other request has claimed the key meanwhile. Raises as `begin`."""
        if isinstance(await self._claim(claim), str):
            raise IdempotencyInProgress(
                "Another request with this Idempotency-Key was faster", retry_after_seconds=1
            )

    @asynccontextmanager
    async def kept(self, claim: IdempotencyClaim | None) -> AsyncIterator[None]:
        """Keep a claim while the context lasts. A failure here is reported by `renew`."""
        keeper = asyncio.create_task(self._keep(claim)) if claim else None
        try:
            yield
        finally:
            if keeper is not None:
                keeper.cancel()
                await asyncio.wait([keeper])

    async def _keep(self, claim: IdempotencyClaim) -> None:
        while True:
            await asyncio.sleep(PENDING_SECONDS / 3)
            with suppress(IdempotencyInProgress, redis.RedisError):
                await self._claim(claim)

    async def abandon(self, claim: IdempotencyClaim) -> None:
        """Release the key of a request that failed."""
        await self._abandon(keys=[claim.name], args=[claim.token])

    def bind(self, claim: IdempotencyClaim, job_id: str, pipeline: Any) -> None:
        """Let the key stand for a job, in the transaction that creates the job."""
        pipeline.hset(claim.name, mapping={"fingerprint": claim.fingerprint, "job": job_id})
        pipeline.hdel(claim.name, "token")
        pipeline.expire(claim.name, self._kept)

    async def _claim(self, claim: IdempotencyClaim) -> IdempotencyClaim | str:
        answer: Any = await self._begin(
            keys=[claim.name], args=[claim.token, claim.fingerprint, PENDING_SECONDS]
        )
        if answer == "mismatch":
            raise IdempotencyMismatch
        if answer == "pending":
            raise IdempotencyInProgress(retry_after_seconds=1)
        return claim if answer == "begun" else str(answer)
