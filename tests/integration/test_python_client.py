"""The Python client against the running service: what an app developer writes."""

import asyncio
import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image
from standardwebhooks.webhooks import Webhook

from imageprompt import (
    ApiError,
    AsyncClient,
    Client,
    JobFailed,
    Unavailable,
    WebhookVerificationError,
    verify_webhook,
)
from service.cli import processes
from tests.stack import Service, picture


@pytest.fixture(scope="module")
def client(service: Service) -> Client:
    made = Client(service.api.url)
    service.stack.callback(made.close)
    return made


def test_run_takes_paths_bytes_and_open_files_and_returns_finished_pictures(
    client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "prompt.png"
    path.write_bytes(picture(1))
    job = client.run(
        [path, picture(2), io.BytesIO(picture(3))],
        prompt="a red star",
        image_weights=[1, 0.5, 0.25],
        deterministic=True,
        num_images=2,
        seed=5,
        steps=2,
    )
    assert [image.seed for image in job.images] == [5, 6]
    assert job.input["image_weights"] == [1, 0.5, 0.25]
    assert job.input["deterministic"] is True
    opened = Image.open(io.BytesIO(client.picture(job, 1)))
    assert opened.size == (job.images[1].width, job.images[1].height)


def test_events_tell_of_every_step_and_end_with_the_finished_job(client: Client) -> None:
    job = client.generate(picture(4), steps=3)
    events = list(client.events(job))
    assert events[-1].name == "done"
    assert events[-1].data["status"] == "succeeded"
    steps = [event.data["step"] for event in events if event.name == "progress"]
    assert steps == sorted(steps)
    assert steps[-1] == 3


def test_jobs_can_be_listed_canceled_and_deleted(client: Client) -> None:
    job = client.generate(picture(5), steps=100)
    assert job.id in [one.id for one in client.jobs()]
    ended = client.cancel(job)
    assert ended.is_final
    assert client.wait(job.id).status == ended.status
    client.delete(job)
    with pytest.raises(ApiError) as caught:
        client.job(job.id)
    assert caught.value.status in (404, 410)


def test_a_job_without_pictures_is_raised_with_its_state(client: Client) -> None:
    job = client.generate(picture(6), steps=100)
    client.cancel(job)
    ended = client.wait(job)
    assert ended.status == "canceled"
    assert str(JobFailed(ended)) == f"job {job.id} canceled: canceled."


def test_a_refusal_names_the_field(client: Client) -> None:
    with pytest.raises(ApiError, match="steps") as caught:
        client.generate(picture(7), steps=999)
    assert (caught.value.status, caught.value.errors[0]["field"]) == (422, "steps")
    assert caught.value.type.startswith("urn:")


def test_files_and_urls_may_be_mixed_in_one_list(client: Client) -> None:
    """This service fetches no URL; what it says tells that both have reached the same field."""
    with pytest.raises(ApiError, match="does not fetch") as caught:
        client.generate([picture(7), "https://example.com/a.png"])
    assert caught.value.errors[0]["field"] == "image"


def test_one_idempotency_key_makes_one_job(client: Client) -> None:
    first, second = (
        client.generate(picture(8), steps=2, seed=1, idempotency_key="a-key") for _ in range(2)
    )
    assert first.id == second.id


def test_models_tell_their_limits(client: Client) -> None:
    assert client.models()["models"]


def test_a_service_that_is_not_there_is_named() -> None:
    url = f"http://127.0.0.1:{processes.free_port()}"
    with Client(url) as client, pytest.raises(Unavailable, match=url):
        client.models()


def test_the_asynchronous_client_does_the_same(service: Service) -> None:
    async def use() -> None:
        async with AsyncClient(service.api.url) as client:
            job = await client.run(picture(9), steps=2)
            assert (await client.picture(job)).startswith(b"\x89PNG")
            assert [event.name async for event in client.events(job)][-1] == "done"
            assert job.id in [one.id async for one in client.jobs()]
            await client.delete(await client.cancel(job))
            with pytest.raises(ApiError):
                await client.job(job.id)

    asyncio.run(use())


def test_a_webhook_is_read_only_with_its_signature(client: Client, service: Service) -> None:
    job_id = client.run(picture(10), steps=2).id
    body = '{"type": "job.succeeded", "data": ' + service.client.get(f"/jobs/{job_id}").text + "}"
    secret = "whsec_" + "c2VjcmV0" * 4
    now = datetime.now(UTC)
    headers = {
        "Webhook-Id": "1",
        "Webhook-Timestamp": str(int(now.timestamp())),
        "Webhook-Signature": Webhook(secret).sign("1", now, body),
    }
    assert verify_webhook(body.encode(), headers, secret).id == job_id
    with pytest.raises(WebhookVerificationError):
        verify_webhook(body.replace("succeeded", "failed"), headers, secret)
