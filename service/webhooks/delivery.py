"""Delivers the outbox of webhooks: some at a time, few to one host, with retries.

A webhook is signed (Standard Webhooks 1.0) and sent over TLS to a checked address.

A slow receiver occupies slots of its own host only, and slots are shared fairly between owners, so
that neither one host nor one owner with many host names delays the others. An entry without a free
slot is deferred; of one owner's deferred entries a few a second come up again, so that a long
backlog does not hide the entries of others.

Of one job a webhook waits until those of earlier events are out of the outbox. Those are tried
again soon, and not once the end waits for them: they keep it back for seconds, not for hours.
"""

import asyncio
import json
import random
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import redis.asyncio as aioredis
import structlog
from pydantic import SecretStr
from redis.exceptions import RedisError
from standardwebhooks.webhooks import Webhook

from service.api_keys import ANONYMOUS, ApiKey
from service.core import redis_keys
from service.core.job import Job, JobMetrics, Status
from service.core.metrics import ApiMetrics
from service.jobs.views import job_view
from service.limits import FairShare
from service.signed_urls import SignedUrls, Signer
from service.webhooks.bounded_transport import CheckedClient, RequestFailed
from service.webhooks.url_policy import Network, TooManyLookups

MAX_CONCURRENT: Final = 64
MAX_CONCURRENT_PER_HOST: Final = 4
DEFER_SECONDS: Final = 2
DEFERRED_PER_SECOND: Final = 16
"""How many of one owner's deferred entries become due in a second."""
RETRY_DELAYS_SECONDS: Final = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800)
"""Before each further attempt; sixteen hours altogether, within a job's retention."""
MAX_ATTEMPTS: Final = len(RETRY_DELAYS_SECONDS) + 1
CLAIM_SECONDS: Final = 60
"""How long a process owns an entry that it took; after that the entry is due again."""
TIMEOUT_SECONDS: Final = 15.0
"""For the whole attempt: name lookup, connection, TLS and response."""

START: Final = "start"
EARLIER_EVENTS: Final = (START, "output")
"""What a webhook may tell of before the job's end, in the order in which it happens."""

Payload = Callable[[Job, str, Signer | None], str]
"""The body for a job, given the URL of the service and what signs its links."""
Payloads = Mapping[str, Payload]
"""Those of facades by their names."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Outbox:
    """The webhooks that are still to be delivered; `redis_keys.OUTBOX` tells what an entry is.

    An entry is added by the transition that it tells of. A process that takes an entry owns it for
    `CLAIM_SECONDS`; if that process dies, the entry is due again: delivery is at least once.
    Methods raise `redis.RedisError` where Redis is unavailable.
    """

    def __init__(self, redis: "aioredis.Redis") -> None:
        self._redis = redis
        self._take = redis.register_script(redis_keys.load_script("outbox_take"))
        self._postpone = redis.register_script(redis_keys.load_script("outbox_postpone"))
        self._remove = redis.register_script(redis_keys.load_script("outbox_remove"))

    async def take(self, limit: int) -> list[tuple[str, int]]:
        """Claim entries that are due: (entry, number of this attempt from 1)."""
        answer: Any = await self._take(
            keys=[redis_keys.OUTBOX, redis_keys.OUTBOX_ATTEMPTS], args=[limit, CLAIM_SECONDS]
        )
        return [(str(answer[at]), int(answer[at + 1])) for at in range(0, len(answer), 2)]

    async def holds(self, entries: Sequence[str]) -> bool:
        """Whether one of them is still to be delivered."""
        scores = [await self._redis.zscore(redis_keys.OUTBOX, entry) for entry in entries]
        return any(score is not None for score in scores)

    async def retry(self, entry: str, seconds: float) -> None:
        """Make an entry due again later, after an attempt that failed."""
        await self._postpone(
            keys=[redis_keys.OUTBOX, redis_keys.OUTBOX_ATTEMPTS], args=[entry, seconds, 0]
        )

    async def defer(self, entry: str, seconds: float) -> None:
        """Make an entry due again later, without counting an attempt."""
        await self._postpone(
            keys=[redis_keys.OUTBOX, redis_keys.OUTBOX_ATTEMPTS], args=[entry, seconds, -1]
        )

    async def remove(self, entry: str) -> None:
        """Remove an entry for good."""
        # A script: a full Redis refuses transactions, even those that only delete.
        await self._remove(keys=[redis_keys.OUTBOX, redis_keys.OUTBOX_ATTEMPTS], args=[entry])


class DeliveryOutcome(StrEnum):
    """How one attempt to deliver ended."""

    DELIVERED = "delivered"
    GONE = "gone"
    """The receiver asked for no further attempts (410)."""
    FAILED = "failed"
    DEFERRED = "deferred"
    """Not sent, because too many names are being resolved at the moment."""


class Sender:
    """Sends webhooks."""

    def __init__(
        self,
        networks: Sequence[Network],
        *,
        tls: ssl.SSLContext | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._client = CheckedClient(networks, tls=tls, timeout_seconds=timeout_seconds)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def send(
        self, url: str, message_id: str, body: str, secret: str, *, owner: str
    ) -> DeliveryOutcome:
        """Send `body` (JSON) once; never raises for what the receiver does.

        Lookups of names are shared fairly between owners.
        """
        now = datetime.now(UTC)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign(message_id, now, body),
        }
        try:
            response = await self._client.send(
                "POST", url, owner=owner, headers=headers, content=body.encode()
            )
        except TooManyLookups:
            return DeliveryOutcome.DEFERRED
        except RequestFailed as error:
            log.info("a webhook failed", message_id=message_id, cause=str(error))
            return DeliveryOutcome.FAILED
        status = response.status_code
        if status == HTTPStatus.GONE:
            return DeliveryOutcome.GONE
        if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            return DeliveryOutcome.DELIVERED
        log.info("a webhook was refused", message_id=message_id, status=status)
        return DeliveryOutcome.FAILED


class Delivery:
    """Delivers entries that are due; one in each process, any number of processes."""

    def __init__(
        self,
        redis: "aioredis.Redis",
        sender: Sender,
        metrics: ApiMetrics,
        signed_urls: SignedUrls,
        *,
        anonymous_secret: SecretStr | None,
        payloads: Payloads,
        jitter: Callable[[], float] = lambda: random.uniform(0.75, 1.25),  # noqa: S311 - no secret
    ) -> None:
        self._redis = redis
        self._outbox = Outbox(redis)
        self._sender = sender
        self._metrics = metrics
        self._signed_urls = signed_urls
        self._anonymous_secret = anonymous_secret
        self._payloads = payloads
        self._jitter = jitter
        self._running: set[asyncio.Task[None]] = set()
        self._host_slots: Counter[str] = Counter()
        self._owner_slots = FairShare(MAX_CONCURRENT)
        self._due_again: dict[str, float] = {}

    async def step(self) -> None:
        """Start to deliver what is due, as far as slots are free. Raises `redis.RedisError`."""
        for entry, attempt in await self._outbox.take(MAX_CONCURRENT - len(self._running)):
            task = asyncio.create_task(self._deliver(entry, attempt))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # The entry is due again when its claim has run out.
            log.warning("a webhook delivery was interrupted", exc_info=task.exception())

    async def close(self) -> None:
        """Cancel what is being sent; it is due again later."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._sender.close()

    async def _deliver(self, entry: str, attempt: int) -> None:
        if attempt > MAX_ATTEMPTS:  # every attempt so far has ended with its process
            await self._finish(entry, attempt, DeliveryOutcome.FAILED)
            return
        try:
            await self._attempt(entry, attempt)
        except RedisError:
            raise
        except Exception:
            # A record that cannot be read, for example: it must not be tried for ever.
            log.exception("a webhook delivery failed", **_named(entry), attempt=attempt)
            await self._finish(entry, attempt, DeliveryOutcome.FAILED)

    async def _attempt(self, entry: str, attempt: int) -> None:
        job_id, _, event = entry.partition(":")
        fields: Any = await self._redis.hgetall(redis_keys.job(job_id))
        job = Job.read(fields) if fields else None
        secret = None if job is None else await self._secret(job.owner)
        if job is None or secret is None or job.request.webhook_url is None:
            await self._outbox.remove(entry)  # the job or its key was deleted meanwhile
            return
        if event and attempt > 1 and await self._outbox.holds([job_id]):
            await self._outbox.remove(entry)  # the end is told instead
            return
        if "webhook_events" in fields and await self._outbox.holds(_earlier(job_id, event)):
            await self._outbox.defer(entry, self._seconds_until_due(job.owner))
            return
        host = urlsplit(job.request.webhook_url).hostname or ""
        if self._host_slots[host] >= MAX_CONCURRENT_PER_HOST or not self._owner_slots.take(
            job.owner
        ):
            await self._outbox.defer(entry, self._seconds_until_due(job.owner))
            return
        self._host_slots[host] += 1
        try:
            signer = None if job.owner == ANONYMOUS else await self._signed_urls.signer(job.owner)
            payload = self._payloads.get(fields.get("webhook_payload", ""), _body)
            body = payload(_at(job, event), fields.get("webhook", ""), signer)
            message_id = f"msg_{entry.replace(':', '_')}"
            outcome = await self._sender.send(
                job.request.webhook_url, message_id, body, secret, owner=job.owner
            )
        finally:
            self._owner_slots.release(job.owner)
            self._host_slots[host] -= 1
            self._host_slots += Counter()  # drops the zeros
        await self._finish(entry, attempt, outcome)

    def _seconds_until_due(self, owner: str) -> float:
        """Seconds until the next of an owner's deferred entries becomes due."""
        now = time.monotonic()
        self._due_again = {name: at for name, at in self._due_again.items() if at > now}
        self._due_again[owner] = max(
            now + DEFER_SECONDS, self._due_again.get(owner, 0) + 1 / DEFERRED_PER_SECOND
        )
        return self._due_again[owner] - now

    async def _finish(self, entry: str, attempt: int, outcome: DeliveryOutcome) -> None:
        if outcome is DeliveryOutcome.DEFERRED:
            await self._outbox.defer(entry, DEFER_SECONDS)
            return
        self._metrics.webhooks.labels(outcome.value).inc()
        if outcome is DeliveryOutcome.FAILED and attempt < MAX_ATTEMPTS:
            delay = RETRY_DELAYS_SECONDS[0 if ":" in entry else attempt - 1]
            await self._outbox.retry(entry, delay * self._jitter())
            return
        log.info("webhook ended", **_named(entry), outcome=outcome.value, attempts=attempt)
        await self._outbox.remove(entry)

    async def _secret(self, owner: str) -> str | None:
        if owner == ANONYMOUS:
            secret = self._anonymous_secret
            return None if secret is None else secret.get_secret_value()
        text: Any = await self._redis.hget(redis_keys.API_KEYS, owner)
        return None if text is None else ApiKey.model_validate_json(text).webhook_secret


def _named(entry: str) -> dict[str, str]:
    """An entry in the log: `event` is the name of the line itself."""
    job_id, _, event = entry.partition(":")
    return {"job_id": job_id, "webhook_event": event or "completed"}


def _earlier(job_id: str, event: str) -> list[str]:
    """The entries of what happens to a job before an event."""
    known = EARLIER_EVENTS[: EARLIER_EVENTS.index(event)] if event else EARLIER_EVENTS
    return [f"{job_id}:{one}" for one in known]


def _at(job: Job, event: str) -> Job:
    """The job as it stood at an event before its end, however late that is told."""
    if not event:
        return job
    then: dict[str, Any] = {"status": Status.PROCESSING, "completed_at": None, "error": None}
    if event == START:
        then |= {"images": (), "maps": (), "step": 0, "warnings": (), "metrics": JobMetrics()}
    return job.model_copy(update=then)


def _body(job: Job, base: str, signer: Signer | None) -> str:
    """The payload (Standard Webhooks, "payload structure"): type, timestamp, data."""
    ended = datetime.fromtimestamp(job.completed_at or job.created_at, UTC)
    shown = job_view(job, base=base, ahead=None, eta_seconds=None, signer=signer)
    return json.dumps(
        {
            "type": f"job.{job.status.value}",
            "timestamp": ended.isoformat(),
            "data": shown.model_dump(mode="json"),
        },
        separators=(",", ":"),
    )
