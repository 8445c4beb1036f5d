"""A webhook arrives once its job has ended: signed, again where it failed, and past nobody."""

import asyncio
import json
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import redis.asyncio as aioredis
import replicate
from pydantic import SecretStr
from redis import Redis
from replicate.prediction import Prediction
from replicate.webhook import InvalidSignatureError, Webhooks, WebhookSigningSecret
from standardwebhooks.webhooks import Webhook

from service import api_keys
from service.core import redis_keys
from service.core.catalog import load_catalog
from service.core.job import Job, JobMetrics, Status, StoredImage
from service.core.metrics import ApiMetrics
from service.core.queue import enqueue, open_queue
from service.core.settings import ROOT
from service.core.transitions import Claim, Transitions
from service.routes.replicate import PAYLOAD, webhook_payload
from service.signed_urls import SignedUrls
from service.webhooks import url_policy
from service.webhooks.delivery import (
    DEFERRED_PER_SECOND,
    MAX_ATTEMPTS,
    MAX_CONCURRENT,
    RETRY_DELAYS_SECONDS,
    Delivery,
    Sender,
)
from tests.requests import generate_request
from tests.running import Running, until
from tests.service.conftest import PNG, WEBHOOK_SECRET, Api
from tests.service.webhooks.conftest import NAME, Receiver, trusting

IMAGE = StoredImage(
    key="results/a/0.png", content_type="image/png", width=8, height=8, seed=1, sha256="ab" * 32
)
EVERY_EVENT = {"webhook_payload": PAYLOAD, "webhook_events": "start output logs completed"}


@dataclass
class Desk:
    """Ends jobs with webhooks, and delivers."""

    redis: Redis
    url: str
    transitions: Transitions
    metrics: ApiMetrics = field(default_factory=ApiMetrics)

    def start_job(self, webhook_url: str, owner: str = "anonymous", **fields: str) -> Claim:
        """A job that a worker has just claimed."""
        job = Job(
            id=str(uuid.uuid4()),
            owner=owner,
            status=Status.QUEUED,
            request=generate_request(webhook_url=webhook_url),
            created_at=time.time(),
        )
        fields = {"webhook": "https://api.example/", **fields}
        enqueue(
            open_queue("q", self.redis),
            self.transitions,
            job,
            also=lambda pipe: pipe.hset(redis_keys.job(job.id), mapping=fields),
        )
        claim = Claim(job.id, "t")
        assert self.transitions.claim(claim, "w")
        return claim

    def end_job(self, webhook_url: str, owner: str = "anonymous", **fields: str) -> str:
        """A job that has just succeeded."""
        claim = self.start_job(webhook_url, owner, **fields)
        assert self.transitions.succeed(claim, (IMAGE,), JobMetrics(), 5)
        return claim.job_id

    def deliver(
        self, sender: Callable[[], Sender], done: Callable[[], object], jitter: float = 0.0
    ) -> None:
        """Deliver until `done` is truthy."""

        async def run() -> None:
            client = aioredis.Redis.from_url(self.url, decode_responses=True)
            delivery = Delivery(
                client,
                sender(),
                self.metrics,
                SignedUrls(client, lifetime_seconds=3600),
                anonymous_secret=SecretStr(WEBHOOK_SECRET),
                payloads={PAYLOAD: webhook_payload(load_catalog(ROOT / "models" / "shapes.yaml"))},
                jitter=lambda: jitter,
            )
            try:
                async with asyncio.timeout(120):
                    while not done():
                        await delivery.step()
                        await asyncio.sleep(0.02)
            finally:
                await delivery.close()
                await client.aclose()

        asyncio.run(run())

    @property
    def waiting(self) -> int:
        """Webhooks still to be delivered."""
        return int(self.redis.zcard(redis_keys.OUTBOX))


def test_a_prediction_is_reported_as_replicates_client_reads_it(
    desk: Desk, receiver: Receiver
) -> None:
    job_id = desk.end_job(receiver.url, webhook_payload=PAYLOAD)
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    [(_, headers, body)] = receiver.seen
    secret = WebhookSigningSecret(key=WEBHOOK_SECRET)
    Webhooks.validate(headers=headers, body=body.decode(), secret=secret, tolerance=300)
    prediction = Prediction(**json.loads(body))
    assert (prediction.id, prediction.status) == (job_id, "succeeded")
    [picture] = prediction.output
    assert picture.startswith(f"https://api.example/jobs/{job_id}/images/0")
    wrong = WebhookSigningSecret(key="whsec_d3Jvbmc=")
    with pytest.raises(InvalidSignatureError):
        Webhooks.validate(headers=headers, body=body.decode(), secret=wrong)


@pytest.fixture
def desk(redis: Redis, redis_url: str) -> Desk:
    """A desk on an empty Redis."""
    return Desk(
        redis,
        redis_url,
        Transitions(redis, retention_seconds=100, tombstone_seconds=100, max_attempts=3),
    )


def verified(receiver: Receiver, secret: str = WEBHOOK_SECRET) -> list[dict[str, object]]:
    """Every payload that came in, each checked by the library of the specification."""
    return [Webhook(secret).verify(body, headers) for _, headers, body in receiver.seen]


def test_it_is_signed_and_tells_of_the_job(desk: Desk, receiver: Receiver) -> None:
    job_id = desk.end_job(receiver.url)
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    [payload] = verified(receiver)
    assert payload["type"] == "job.succeeded"
    assert payload["data"]["id"] == job_id
    assert payload["data"]["urls"]["self"] == f"https://api.example/jobs/{job_id}"
    assert receiver.seen[0][1]["webhook-id"] == f"msg_{job_id}"


def test_it_is_signed_with_the_secret_of_its_key(desk: Desk, receiver: Receiver) -> None:
    _, record = api_keys.make_key("x", now=0)
    api_keys.save(desk.redis, record)
    desk.end_job(receiver.url, owner=record.id)
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    assert len(verified(receiver, record.webhook_secret)) == 1


def test_it_is_sent_again_under_one_id_until_it_is_received(desk: Desk, receiver: Receiver) -> None:
    receiver.answers = [500, 429, 302, 204]
    desk.end_job(receiver.url)
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    assert len(verified(receiver)) == 4
    assert {path for path, _, _ in receiver.seen} == {"/hook"}, "redirects are not followed"
    assert len({headers["webhook-id"] for _, headers, _ in receiver.seen}) == 1
    assert desk.redis.hlen(f"{redis_keys.OUTBOX}:attempts") == 0


def test_410_stops_it(desk: Desk, receiver: Receiver) -> None:
    receiver.answers = [410]
    desk.end_job(receiver.url)
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    assert len(receiver.seen) == 1


def test_after_the_last_attempt_it_is_given_up(desk: Desk, receiver: Receiver) -> None:
    receiver.answers = [500]
    desk.end_job(receiver.url)
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    assert len(receiver.seen) == len(RETRY_DELAYS_SECONDS) + 1


def test_attempts_are_put_off_further_and_further(desk: Desk, receiver: Receiver) -> None:
    receiver.answers = [500]
    desk.end_job(receiver.url)

    def due() -> float:
        [(_, score)] = desk.redis.zrange(redis_keys.OUTBOX, 0, -1, withscores=True)
        return float(score) - time.time()

    desk.deliver(trusting(receiver), lambda: receiver.seen and due() < 30, jitter=1.0)
    assert 0 < due() <= RETRY_DELAYS_SECONDS[0]
    assert list(RETRY_DELAYS_SECONDS) == sorted(RETRY_DELAYS_SECONDS)


def test_slow_receivers_delay_nobody(desk: Desk, make_receiver: Callable[[], Receiver]) -> None:
    slow, quick = make_receiver(), make_receiver()
    slow.delay_seconds = 60
    by_name = f"https://{NAME}:{slow.port}/hook"
    for _ in range(12):
        desk.end_job(by_name)
    jobs = [desk.end_job(quick.url) for _ in range(3)]
    real = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *more, **options: real(
                "127.0.0.1" if host == NAME else host, *more, **options
            ),
        )
        # Not before all of its places are in use: a connection broken off in TLS stays open.
        desk.deliver(
            trusting(slow, timeout_seconds=60),
            lambda: desk.waiting == 12 and len(slow.seen) >= 4,
        )
    assert {payload["data"]["id"] for payload in verified(quick)} == set(jobs)
    assert len(slow.seen) == 4, "one host has so many places and no more"


def test_a_backlog_comes_up_again_a_few_at_a_time(desk: Desk, receiver: Receiver) -> None:
    receiver.delay_seconds = 60
    count = 3 * MAX_CONCURRENT
    for _ in range(count):
        desk.end_job(receiver.url)

    def all_are_deferred() -> bool:
        return len(receiver.seen) >= 4 and not desk.redis.zcount(
            redis_keys.OUTBOX, "-inf", time.time()
        )

    desk.deliver(trusting(receiver, timeout_seconds=60), all_are_deferred)
    due = Counter(int(at) for _, at in desk.redis.zrange(redis_keys.OUTBOX, 0, -1, withscores=True))
    # Redis tells whole seconds, so two of the caller's may fall into one.
    assert max(due.values()) <= 2 * DEFERRED_PER_SECOND
    assert sum(due.values()) == count


def test_receivers_of_some_owners_delay_no_other(desk: Desk, receiver: Receiver) -> None:
    """Three owners have more webhooks than are sent at once, each to a silent name of its own."""
    for owner in range(3):
        _, record = api_keys.make_key(f"slow-{owner}", now=0)
        api_keys.save(desk.redis, record)
        for number in range(MAX_CONCURRENT):
            desk.end_job(f"https://silent-{owner}-{number}.example/hook", owner=record.id)
    _, record = api_keys.make_key("x", now=0)
    api_keys.save(desk.redis, record)
    job_id = desk.end_job(receiver.url, owner=record.id)
    real, over = socket.getaddrinfo, threading.Event()

    def answer(host: str, *more: object, **options: object) -> object:
        if host.startswith("silent"):
            over.wait(300)
            raise socket.gaierror
        return real(host, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", answer)
        patch.setattr(url_policy, "LOOKUP_TIMEOUT_SECONDS", 300)
        desk.deliver(
            trusting(receiver, timeout_seconds=300), lambda: desk.waiting == 3 * MAX_CONCURRENT
        )
        over.set()
    assert [payload["data"]["id"] for payload in verified(receiver, record.webhook_secret)] == [
        job_id
    ]


@pytest.mark.parametrize(
    "damage",
    [
        {"request": "{"},
        {"request": "[]"},
        {"status": "unheard-of"},
        {"created_at": "yesterday"},
        {"images": "no list"},
        {"owner": "an-owner-without-a-key"},
    ],
)
def test_a_record_that_cannot_be_read_ends_after_the_last_attempt(
    desk: Desk, receiver: Receiver, damage: dict[str, str]
) -> None:
    damaged = desk.end_job(receiver.url)
    desk.redis.hset(redis_keys.job(damaged), mapping=damage)
    good = desk.end_job(receiver.url)
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    assert {payload["data"]["id"] for payload in verified(receiver)} - {damaged} == {good}
    assert desk.redis.hlen(redis_keys.OUTBOX_ATTEMPTS) == 0


def test_an_entry_whose_attempts_all_ended_with_their_process_is_removed(
    desk: Desk, receiver: Receiver
) -> None:
    job_id = desk.end_job(receiver.url)
    desk.redis.hset(redis_keys.OUTBOX_ATTEMPTS, job_id, MAX_ATTEMPTS)
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    assert receiver.seen == []


def test_a_damaged_count_of_attempts_delays_no_other(desk: Desk, receiver: Receiver) -> None:
    jobs = [desk.end_job(receiver.url) for _ in range(3)]
    desk.redis.hset(redis_keys.OUTBOX_ATTEMPTS, jobs[1], "many")
    desk.redis.zadd(
        redis_keys.OUTBOX, {"no-such-job": 0, "": 0, "\udcff".encode("utf-8", "surrogateescape"): 0}
    )
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    assert {payload["data"]["id"] for payload in verified(receiver)} == set(jobs)


def test_what_was_taken_by_a_process_that_died_comes_up_again(
    desk: Desk, receiver: Receiver
) -> None:
    job_id = desk.end_job(receiver.url)
    receiver.delay_seconds = 30
    desk.deliver(trusting(receiver), lambda: receiver.seen)  # and is broken off
    assert desk.redis.zscore(redis_keys.OUTBOX, job_id) > time.time() + 10
    desk.redis.zadd(redis_keys.OUTBOX, {job_id: time.time()})  # its lease has run out
    receiver.delay_seconds = 0
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    assert len(verified(receiver)) == 2


def test_a_deleted_job_is_told_of_no_more(desk: Desk, receiver: Receiver) -> None:
    job_id = desk.end_job(receiver.url)
    desk.transitions.erase(job_id, "anonymous")
    assert desk.waiting == 0
    gone = desk.end_job(receiver.url)
    desk.redis.delete(redis_keys.job(gone))
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    assert receiver.seen == []


def told(receiver: Receiver) -> list[tuple[str, bool, bool]]:
    """Of each webhook, as Replicate's client reads it: status, whether it has output, an end."""
    predictions = [Prediction(**payload) for payload in verified(receiver)]
    return [(one.status, bool(one.output), one.completed_at is not None) for one in predictions]


def test_every_event_that_was_asked_for_is_told_in_its_order(
    desk: Desk, receiver: Receiver
) -> None:
    """Also where nothing was sent before the job had ended."""
    receiver.delay_seconds = 0.5
    job_id = desk.end_job(receiver.url, **EVERY_EVENT)
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    expected = [
        ("processing", False, False),
        ("processing", True, False),
        ("succeeded", True, True),
    ]
    assert told(receiver) == expected
    ids = [headers["webhook-id"] for _, headers, _ in receiver.seen]
    assert ids == [f"msg_{job_id}_start", f"msg_{job_id}_output", f"msg_{job_id}"]


def test_a_start_is_told_while_the_job_runs_and_again_where_it_failed(
    desk: Desk, receiver: Receiver
) -> None:
    receiver.answers = [500, 500, 200]
    claim = desk.start_job(receiver.url, **EVERY_EVENT)
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    assert told(receiver) == [("processing", False, False)] * 3
    assert desk.transitions.hand_back(claim)
    assert desk.transitions.claim(Claim(claim.job_id, "another"), "w")
    assert desk.waiting == 0, "it starts once"


def test_a_start_that_failed_does_not_hold_up_the_end(desk: Desk, receiver: Receiver) -> None:
    receiver.answers = [500, 200]
    claim = desk.start_job(receiver.url, webhook_payload=PAYLOAD, webhook_events="start completed")
    entry = f"{claim.job_id}:start"

    def is_due_much_later() -> bool:
        return bool(desk.redis.zscore(redis_keys.OUTBOX, entry) > time.time() + 300)

    desk.deliver(trusting(receiver), is_due_much_later, jitter=100.0)
    assert desk.transitions.cancel(claim.job_id) is Status.CANCELED
    desk.redis.zadd(redis_keys.OUTBOX, {entry: 0})
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    assert told(receiver) == [("processing", False, False), ("canceled", False, True)]


def test_an_output_alone_is_sent_again_after_the_end(desk: Desk, receiver: Receiver) -> None:
    receiver.answers = [500, 200]
    desk.end_job(receiver.url, webhook_payload=PAYLOAD, webhook_events="output")
    desk.deliver(trusting(receiver), lambda: not desk.waiting)
    assert told(receiver) == [("processing", True, False)] * 2


@pytest.fixture
def calling_api(
    api: Api, make_api: Callable[..., Running], receiver: Receiver
) -> Iterator[Running]:
    """An API that may call the receiver, beside the module's own on the same Redis."""
    with make_api(
        redis_url=api.redis_url,
        storage_url=api.folder.as_uri(),
        webhook_secret=WEBHOOK_SECRET,
        webhook_networks='["127.0.0.0/8"]',
        SSL_CERT_FILE=str(receiver.certificate),
    ) as running:
        yield running


def test_a_running_api_calls_back(api: Api, receiver: Receiver, calling_api: Running) -> None:
    refused = api.post({"webhook_url": receiver.url})
    assert refused.status_code == 422
    answer = httpx.post(
        f"{calling_api.url}/generate",
        files={"image": ("a", PNG)},
        data={"webhook_url": receiver.url},
        timeout=60,
    )
    job_id = answer.json()["id"]
    api.client.post(f"/jobs/{job_id}/cancel")

    # The module's own API may take it first; it must not send to loopback and puts it off.
    def arrived() -> bool:
        api.redis.zadd(redis_keys.OUTBOX, {job_id: 0}, xx=True)
        return bool(receiver.seen)

    until(arrived, what="the webhook")
    # It is over then, or the module's own API would go on with it in other tests.
    until(
        lambda: api.redis.zscore(redis_keys.OUTBOX, job_id) is None, what="the end of the delivery"
    )
    payload = verified(receiver)[0]
    assert (payload["type"], payload["data"]["id"]) == ("job.canceled", job_id)


def test_a_running_api_tells_of_the_events_that_replicates_client_asks_for(
    desk: Desk, make_api: Callable[..., Running], receiver: Receiver, tmp_path: Path
) -> None:
    settings = {"redis_url": desk.url, "storage_url": tmp_path.as_uri()}
    settings |= {"webhook_secret": WEBHOOK_SECRET, "webhook_networks": '["127.0.0.0/8"]'}
    with make_api(**settings, SSL_CERT_FILE=str(receiver.certificate)) as running:
        client = replicate.Client(base_url=running.url, api_token="any while no key exists")
        with closing(client._client):
            prediction = client.predictions.create(
                model="imageprompt/shapes",
                input={"prompt": "a red star"},
                webhook=receiver.url,
                webhook_events_filter=["start", "output", "completed"],
            )
        assert desk.waiting == 0
        claim = Claim(prediction.id, "t")
        assert desk.transitions.claim(claim, "w")
        until(lambda: receiver.seen, what="the start")
        assert desk.transitions.succeed(claim, (IMAGE,), JobMetrics(), 5)
        until(lambda: not desk.waiting, what="the end")
    assert {payload["id"] for payload in verified(receiver)} == {prediction.id}
    assert [status for status, _, _ in told(receiver)] == ["processing", "processing", "succeeded"]
