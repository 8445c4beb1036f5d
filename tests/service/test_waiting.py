"""POST /generate with `Prefer: wait`: the job or its picture in the answer, as long as it takes."""

import socket
import threading
import time

import httpx

from tests.running import until
from tests.service.conftest import PNG, Api


def listed(api: Api) -> dict[str, tuple[str, int]]:
    """Status and seed of each job."""
    jobs = api.client.get("/jobs?limit=100").json()["jobs"]
    return {job["id"]: (job["status"], job["input"]["seed"]) for job in jobs}


def test_a_client_that_hangs_up_while_waiting_keeps_its_job(api: Api) -> None:
    known = listed(api).keys()
    request = httpx.Request(
        "POST",
        f"{api.running.url}/generate",
        data={"seed": "99"},
        files={"image": ("a.png", PNG)},
        headers={"prefer": "wait=60"},
    )
    lines = [b"POST /generate HTTP/1.1", *(b"%s: %s" % line for line in request.headers.raw)]
    with socket.create_connection(("127.0.0.1", api.running.port)) as connection:
        connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + request.read())
        new = until(lambda: listed(api).keys() - known, what="the job of the client that waits")
    assert [listed(api)[job_id] for job_id in new] == [("queued", 99)]


def wait_and_finish(api: Api, **options: object) -> httpx.Response:
    """POST with `Prefer: wait`, while a worker does the job."""
    queued = set(api.redis.lrange("rq:queue:imageprompt", 0, -1))
    images = int(options.pop("images", 1))

    def work() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            new = set(api.redis.lrange("rq:queue:imageprompt", 0, -1)) - queued
            if new:
                api.finish(new.pop().decode(), images=images)
                return
            time.sleep(0.02)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        return api.post(**options)
    finally:
        worker.join()


def test_a_client_that_waits_is_answered_the_finished_job(api: Api) -> None:
    answer = wait_and_finish(api, headers={"prefer": "wait=60"})
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=60"
    assert answer.json()["status"] == "succeeded"
    assert "retry-after" not in answer.headers


def test_a_client_that_waits_for_a_picture_is_answered_its_bytes(api: Api) -> None:
    headers = {"prefer": "wait=60", "accept": "image/*"}
    answer = wait_and_finish(api, headers=headers)
    assert (answer.status_code, answer.content) == (200, PNG)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-seed"] == "7"
    assert answer.headers["x-job-id"] in answer.headers["location"]
    assert "Accept" in answer.headers["vary"]


def test_two_pictures_are_answered_as_json_whatever_is_preferred(api: Api) -> None:
    headers = {"prefer": "wait=60", "accept": "image/png"}
    answer = wait_and_finish(api, fields={"num_images": 2}, headers=headers, images=2)
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.json()["images"]) == 2


def test_the_accepted_format_is_made_unless_another_is_asked_for(api: Api) -> None:
    headers = {"prefer": "wait=1", "accept": "image/webp"}
    assert api.post(headers=headers).json()["input"]["output_format"] == "webp"
    asked = api.post({"output_format": "jpeg"}, headers=headers)
    assert asked.json()["input"]["output_format"] == "jpeg"


def test_waiting_ends_with_202_when_the_time_is_up(api: Api) -> None:
    answer = api.post(headers={"prefer": "wait=1"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=1")
    at_once = api.post(headers={"prefer": "respond-async"})
    assert (at_once.status_code, at_once.headers["preference-applied"]) == (202, "respond-async")
