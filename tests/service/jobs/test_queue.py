"""A job that no worker starts in time ends by itself, and gives its place to others."""

from collections.abc import Callable

import httpx

from tests.running import KEEP, Running, until
from tests.service.conftest import PNG, problem, sse


def test_an_overdue_job_expires_while_no_worker_lives(
    make_api: Callable[..., Running], redis_url: str, storage_url: str
) -> None:
    settings = {"redis_url": redis_url, "storage_url": storage_url, "max_queued_jobs": 1}
    files = {"image": ("a", PNG)}
    with (
        make_api(**settings, queue_deadline_seconds=3) as running,
        httpx.Client(base_url=running.url, timeout=60, limits=KEEP) as client,
    ):
        job = client.post("/generate", files=files).json()["urls"]["self"]
        with client.stream("GET", f"{job}/events") as stream:
            problem(client.post("/generate", files=files), 503)
            events = sse("\n".join(stream.iter_lines()))
        assert [name for _, name, _ in events] == ["status", "status", "done"]
        ended = client.get(job).json()
        assert (ended["status"], ended["error"]["type"]) == (
            "expired",
            "urn:imageprompt:error:deadline",
        )
        until(
            lambda: client.post("/generate", files=files).status_code == 202,
            what="room in the queue",
        )
