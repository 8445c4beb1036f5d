"""URLs that carry their own, expiring permission: for `<img>`, `EventSource` and links.

A browser sends no API key with those. The signature (HMAC-SHA256) covers the path, the id of the
API key whose job it is, and the time at which the URL expires. A revoked key's URLs end with it.
The secrets are in Redis and are replaced regularly, so that all API processes accept them.
"""

import base64
import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import redis.asyncio as aioredis

from service.core import redis_keys
from service.core.errors import Unauthorized

SECRET_BYTES: Final = 32
CACHE_SECONDS: Final = 60.0
ROTATION_SECONDS: Final = 24 * 3600
SIGNATURE: Final = "signature"
"""The query parameter by which a signed URL is known."""


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs the URLs of one API key's jobs, with a secret at hand."""

    key_id: str
    secret_id: str
    secret: bytes
    expires_at: int

    def sign(self, path: str) -> str:
        """The query, with its `?`, that gives access to a path (without prefix or first slash)."""
        query = {
            "key": self.key_id,
            "expires": str(self.expires_at),
            SIGNATURE: f"{self.secret_id}.{_mac(self.secret, path, self.key_id, self.expires_at)}",
        }
        return f"?{urlencode(query)}"


class SignedUrls:
    """Signs and verifies URLs. Methods raise `redis.RedisError`."""

    def __init__(
        self,
        redis: "aioredis.Redis",
        *,
        lifetime_seconds: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._lifetime_seconds = lifetime_seconds
        self._clock = clock
        self._rotate = redis.register_script(redis_keys.load_script("url_secrets"))
        self._secrets: dict[str, bytes] = {}
        """By id, the newest first."""
        self._read_at = -math.inf

    async def signer(self, key_id: str) -> Signer:
        """Signs for one API key. URLs stay the same for some time, so that browsers cache them."""
        found = await self._current(fresh=False)
        secret_id = next(iter(found))
        period = self._lifetime_seconds
        expires_at = math.ceil(self._clock() / period + 1) * period
        return Signer(key_id, secret_id, found[secret_id], expires_at)

    async def verify(self, path: str, query: Mapping[str, str]) -> str:
        """The id of the API key that a URL was signed for. Raises `Unauthorized`."""
        key_id, expires = query.get("key", ""), query.get("expires", "")
        secret_id, _, given = query.get(SIGNATURE, "").partition(".")
        if not (expires.isascii() and expires.isdigit() and len(expires) < len("9" * 13)):
            raise Unauthorized("The signed URL is malformed")
        if int(expires) < self._clock():
            raise Unauthorized("The signed URL has expired; get a new one from the job")
        secret = (await self._current(fresh=False)).get(secret_id)
        if secret is None:
            secret = (await self._current(fresh=True)).get(secret_id)
        expected = "" if secret is None else _mac(secret, path, key_id, int(expires))
        # As bytes: of texts it compares none but ASCII.
        if not expected or not hmac.compare_digest(expected.encode(), given.encode()):
            raise Unauthorized("The signature of the URL is not valid; get a new URL from the job")
        return key_id

    async def _current(self, *, fresh: bool) -> dict[str, bytes]:
        """The valid secrets, from Redis at most once a second."""
        age = self._clock() - self._read_at
        if age > CACHE_SECONDS or (fresh and age > 1) or not self._secrets:
            answer: Any = await self._rotate(
                keys=[redis_keys.URL_SECRETS],
                args=[
                    secrets.token_hex(4),
                    secrets.token_hex(SECRET_BYTES),
                    ROTATION_SECONDS,
                    ROTATION_SECONDS + 2 * self._lifetime_seconds,
                ],
            )
            pairs = zip(answer[::2], answer[1::2], strict=True)
            self._secrets = {str(name): bytes.fromhex(str(text)) for name, text in pairs}
            self._read_at = self._clock()
        return self._secrets


def _mac(secret: bytes, path: str, key_id: str, expires_at: int) -> str:
    text = f"{path}\n{key_id}\n{expires_at}".encode()
    digest = hmac.new(secret, text, hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
