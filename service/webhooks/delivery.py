"""Brings the outbox to its receivers: a few at a time, few to one host, again and again.

A slow receiver holds one of its own host's places, and all of one caller's together half of all, so
that neither one host nor one caller with many names delays the others. What finds no place comes up
again in turn, a few of a caller's a second, or its backlog would be all that is ever looked at.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import redis.asyncio as aioredis
import structlog
from pydantic import SecretStr

from service.api_keys import ApiKey
from service.core import redis_keys
from service.core.job import Job
from service.core.metrics import ApiMetrics
from service.gate import ANONYMOUS
from service.jobs.views import job_view
from service.webhooks.outbox import Outbox
from service.webhooks.sender import Outcome, Sender

AT_ONCE: Final = 64
AT_ONCE_TO_ONE_HOST: Final = 4
AT_ONCE_OF_ONE_OWNER: Final = 32
BUSY_SECONDS: Final = 2
AGAIN_A_SECOND: Final = 16
"""Of one caller's deferred entries come up so many."""
DELAYS_SECONDS: Final = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800)
"""Before each further attempt; some sixteen hours altogether, within a job's retention."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Delivery:
    """Delivers what is due; one a process, any number of processes."""

    def __init__(
        self,
        redis: "aioredis.Redis",
        sender: Sender,
        metrics: ApiMetrics,
        *,
        anonymous_secret: SecretStr | None,
        jitter: Callable[[], float] = lambda: random.uniform(0.75, 1.25),  # noqa: S311 - no secret
    ) -> None:
        self._redis = redis
        self._outbox = Outbox(redis)
        self._sender = sender
        self._metrics = metrics
        self._anonymous_secret = anonymous_secret
        self._jitter = jitter
        self._running: set[asyncio.Task[None]] = set()
        self._places: Counter[str] = Counter()
        self._turns: dict[str, float] = {}

    async def step(self) -> None:
        """Begin with all that is due and fits. Raises `redis.RedisError`."""
        for job_id, attempt in await self._outbox.take(AT_ONCE - len(self._running)):
            task = asyncio.create_task(self._deliver(job_id, attempt))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # The entry comes up again by itself when its lease has run out.
            log.warning("a webhook was interrupted", exc_info=task.exception())

    async def close(self) -> None:
        """Break off what is being sent; it comes up again."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._sender.close()

    async def _deliver(self, job_id: str, attempt: int) -> None:
        fields: Any = await self._redis.hgetall(redis_keys.job(job_id))
        job = Job.from_hash(fields) if fields else None
        secret = None if job is None else await self._secret(job.owner)
        if job is None or secret is None or job.request.webhook_url is None:
            await self._outbox.remove(job_id)  # the job or its key was deleted meanwhile
            return
        host = f"host {urlsplit(job.request.webhook_url).hostname}"
        owner = f"owner {job.owner}"
        if self._places[host] >= AT_ONCE_TO_ONE_HOST or self._places[owner] >= AT_ONCE_OF_ONE_OWNER:
            await self._outbox.defer(job_id, self._turn(job.owner))
            return
        self._places.update((host, owner))
        try:
            body = _body(job, fields.get("webhook", ""))
            outcome = await self._sender.send(
                job.request.webhook_url, f"msg_{job_id}", body, secret
            )
        finally:
            self._places.subtract((host, owner))
            self._places += Counter()  # forgets those that hold none
        await self._conclude(job_id, attempt, outcome)

    def _turn(self, owner: str) -> float:
        """Seconds until another of an owner's deferred entries may come up."""
        now = time.monotonic()
        self._turns = {name: at for name, at in self._turns.items() if at > now}
        self._turns[owner] = max(now + BUSY_SECONDS, self._turns.get(owner, 0) + 1 / AGAIN_A_SECOND)
        return self._turns[owner] - now

    async def _conclude(self, job_id: str, attempt: int, outcome: Outcome) -> None:
        if outcome is Outcome.BUSY:
            await self._outbox.defer(job_id, BUSY_SECONDS)
            return
        self._metrics.webhooks.labels(outcome.value).inc()
        if outcome is Outcome.FAILED and attempt <= len(DELAYS_SECONDS):
            await self._outbox.retry(job_id, DELAYS_SECONDS[attempt - 1] * self._jitter())
            return
        log.info("webhook concluded", job_id=job_id, outcome=outcome.value, attempts=attempt)
        await self._outbox.remove(job_id)

    async def _secret(self, owner: str) -> str | None:
        if owner == ANONYMOUS:
            secret = self._anonymous_secret
            return None if secret is None else secret.get_secret_value()
        text: Any = await self._redis.hget(redis_keys.API_KEYS, owner)
        return None if text is None else ApiKey.model_validate_json(text).webhook_secret


def _body(job: Job, base: str) -> str:
    """The payload (Standard Webhooks, "payload structure"): type, timestamp, data."""
    ended = datetime.fromtimestamp(job.completed_at or job.created_at, UTC)
    shown = job_view(job, base=base, ahead=None, eta_seconds=None)
    return json.dumps(
        {
            "type": f"job.{job.status.value}",
            "timestamp": ended.isoformat(),
            "data": shown.model_dump(mode="json"),
        },
        separators=(",", ":"),
    )
