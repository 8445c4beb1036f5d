"""A record that another release wrote costs nobody else anything, and its owner can end it."""

import json
import time

import pytest

from service.core import redis_keys
from service.core.job import DETAILS, REQUEST, Job
from tests.requests import generate_request
from tests.service.conftest import PNG, Api, announce_warm, problem

QUEUE = "rq:queue:imageprompt"
CHANGES = {
    "a field more": {"guidance_start": 0.5},
    "an unknown sampler": {"scheduler": "of-tomorrow"},
    "an upload of another kind": {"image": [{"kind": "of tomorrow"}], "images": None},
    "another type": {"steps": "many", "width": [64]},
}


@pytest.fixture(params=CHANGES.values(), ids=CHANGES.keys())
def changed(request: pytest.FixtureRequest, api: Api) -> tuple[str, dict[str, object]]:
    """The id of a queued job as the next release may write it, and what is new of its request."""
    job_id = api.job({"prompt": "a star", "steps": "7"})
    name = redis_keys.job(job_id)
    content = json.loads(api.redis.hget(name, REQUEST)) | request.param
    if content["images"] is None:
        del content["images"]
    api.redis.hset(name, mapping={REQUEST: json.dumps(content), "tier": "of tomorrow"})
    return job_id, request.param


def test_everybody_is_served_beside_it(api: Api, changed: tuple[str, dict[str, object]]) -> None:
    job_id, new = changed
    announce_warm(api.redis, row_steps_per_second=20.0)
    shown = api.client.get(f"/jobs/{job_id}").json()
    assert (shown["status"], shown["input"]["prompt"]) == ("queued", "a star")
    if "scheduler" in new:
        assert shown["input"]["scheduler"] == "of-tomorrow", "it is shown as it stands there"
    listed = api.client.get("/jobs?limit=5").json()["jobs"]
    assert job_id in {job["id"] for job in listed}
    other = api.post({"steps": 3})
    assert other.status_code == 202
    assert api.client.get(f"/jobs/{other.json()['id']}").json()["eta_seconds"] > 0
    metrics = api.client.get("/metrics").text
    assert "imageprompt_queue_jobs" in metrics, "those that are read from Redis"
    assert api.client.delete(f"/jobs/{other.json()['id']}").status_code == 204
    canceled = api.client.post(f"/jobs/{job_id}/cancel").json()
    assert canceled["status"] == "canceled"
    with api.client.stream("GET", f"/jobs/{job_id}/events") as events:
        assert "event: done" in list(events.iter_lines())
    assert api.client.delete(f"/jobs/{job_id}").status_code == 204
    problem(api.client.get(f"/jobs/{job_id}"), 404)


@pytest.mark.parametrize("rubbish", [b"{", b"7", b"\x80\x04\x95secret", None])
def test_a_damaged_record_costs_its_own_job_only(api: Api, rubbish: bytes | None) -> None:
    job_id, other = api.job(), api.job()
    if rubbish is None:
        api.redis.hdel(redis_keys.job(job_id), REQUEST)
    else:
        api.redis.hset(redis_keys.job(job_id), REQUEST, rubbish)
    assert api.client.get(f"/jobs/{other}").status_code == 200
    listed = {job["id"] for job in api.client.get("/jobs?limit=5").json()["jobs"]}
    assert other in listed
    assert job_id not in listed
    assert "imageprompt_queue_jobs" in api.client.get("/metrics").text
    assert api.client.delete(f"/jobs/{job_id}").status_code == 204
    assert api.client.delete(f"/jobs/{other}").status_code == 204


def test_a_request_without_anything_new_is_written_as_the_previous_release_did() -> None:
    """Its workers take a record with a field more for damaged."""
    request = generate_request()
    record = Job(id="a", owner="me", status="queued", request=request, created_at=time.time())
    written = json.loads(record.to_hash()[REQUEST])
    assert set(written) == {
        *("model", "adapter", "images", "prompt", "negative_prompt", "control", "ip_scale", "crop"),
        *("width", "height", "steps", "guidance_scale", "guidance_end", "scheduler", "seed"),
        *("num_images", "output_format", "deterministic", "webhook_url"),
    }
    assert Job.from_hash(record.to_hash()).request == request


def test_a_request_with_a_map_comes_back_as_it_was(api: Api) -> None:
    """What the previous release had no place for stands beside its record."""
    files = [("image", ("a.png", PNG)), ("control_image", ("b.png", PNG))]
    answer = api.post({"control_scale": "0.5"}, files=files)
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    fields = {
        name.decode(): text.decode()
        for name, text in api.redis.hgetall(redis_keys.job(job_id)).items()
    }
    assert DETAILS in fields
    shown = answer.json()["input"]["control_image"]
    again = Job.from_hash(fields).request.control_image[0]
    assert (again.width, again.height) == (shown["width"], shown["height"]) == (24, 16)
    assert api.client.delete(f"/jobs/{job_id}").status_code == 204
