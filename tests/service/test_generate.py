"""POST /generate: what is taken, what is refused, and that a refusal leaves nothing behind."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core import keys
from service.core.queue import TASK, open_queue
from tests import corpus
from tests.running import Running
from tests.service.conftest import PNG, Api


def problem(answer: httpx.Response, status: int) -> dict[str, object]:
    """The problem document of an answer, checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["type"].startswith("urn:imageprompt:error:")
    assert body["instance"] == answer.headers["x-request-id"]
    assert body["instance"].startswith("urn:uuid:")
    return dict(body)


def test_silence_is_filled_with_the_defaults_of_the_model(api: Api) -> None:
    answer = api.post()
    assert answer.status_code == 202
    job = answer.json()
    assert (
        answer.headers["location"] == job["urls"]["self"] == f"{api.running.url}/jobs/{job['id']}"
    )
    assert int(answer.headers["retry-after"]) >= 1
    shown = job["input"]
    seed = shown.pop("seed")
    assert 0 <= seed < 2**32
    assert shown == {
        "image": [{"sha256": hashlib.sha256(PNG).hexdigest(), "width": 24, "height": 16}],
        "image_weights": [1.0],
        "prompt": "",
        "negative_prompt": "",
        "control_image": None,
        "control_type": None,
        "control_scale": None,
        "control_start": None,
        "control_end": None,
        "ip_scale": 1.0,
        "crop": "center",
        "model": "shapes",
        "adapter": "base",
        "width": 128,
        "height": 128,
        "steps": 30,
        "guidance_scale": 7.5,
        "guidance_end": 1.0,
        "scheduler": "ddim",
        "num_images": 1,
        "output_format": "png",
        "deterministic": False,
        "webhook_url": None,
    }
    assert (job["status"], job["started_at"], job["error"]) == ("queued", None, None)


def test_text_beside_the_picture_halves_the_default_scale(api: Api) -> None:
    assert api.post({"prompt": "a red star"}).json()["input"]["ip_scale"] == 0.5
    given_scale = api.post({"prompt": "a red star", "ip_scale": 0})
    assert given_scale.json()["input"]["ip_scale"] == 0


def test_every_field_is_taken_as_sent(api: Api) -> None:
    sent = {
        "image_weights": "0.5,2",
        "prompt": "grün",
        "negative_prompt": "bad",
        "ip_scale": 0.7,
        "control_type": "outline",
        "control_scale": 0.8,
        "control_start": 0.1,
        "control_end": 0.9,
        "crop": "pad",
        "model": "shapes",
        "adapter": "plus",
        "width": 64,
        "height": 256,
        "steps": 7,
        "guidance_scale": 1,
        "guidance_end": 0.5,
        "scheduler": "euler",
        "seed": 2**32 - 1,
        "num_images": 4,
        "output_format": "webp",
        "deterministic": "true",
        "webhook_url": "https://example.org/hook",
    }
    other = corpus.saved(corpus.picture(3), "JPEG")
    files = [("image", ("a", PNG)), ("image", ("b", other)), ("control_image", ("c", PNG))]
    shown = api.post(sent, files=files).json()["input"]
    assert [image["sha256"] for image in shown["image"]] == [
        hashlib.sha256(data).hexdigest() for data in (PNG, other)
    ]
    assert shown.pop("control_image") == {"sha256": hashlib.sha256(PNG).hexdigest()}
    assert shown.pop("image_weights") == [0.5, 2]
    assert shown.pop("deterministic") is True
    for name, value in sent.items():
        if name in shown:
            assert shown[name] == value, name


def test_the_queue_carries_the_id_alone_and_storage_the_pixels(api: Api) -> None:
    job_id = api.job()
    rq_job = open_queue("imageprompt", api.redis).fetch_job(job_id)
    assert rq_job is not None
    assert (rq_job.func_name, list(rq_job.args)) == (TASK, [job_id])
    assert [path.name for path in (api.folder / "uploads" / job_id).iterdir()] == ["image-0.png"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"steps": 0}, {"steps"}),
        ({"steps": 101}, {"steps"}),
        ({"steps": "many"}, {"steps"}),
        ({"width": 100, "height": 13}, {"width", "height"}),
        ({"width": 512}, {"width"}),
        ({"width": 32}, {"width"}),
        ({"ip_scale": 2.1}, {"ip_scale"}),
        ({"ip_scale": "nan"}, {"ip_scale"}),
        ({"guidance_scale": "inf"}, {"guidance_scale"}),
        ({"guidance_scale": 20.5}, {"guidance_scale"}),
        ({"guidance_end": 1.1}, {"guidance_end"}),
        ({"guidance_end": -0.1}, {"guidance_end"}),
        ({"guidance_end": "nan"}, {"guidance_end"}),
        ({"scheduler": "magic"}, {"scheduler"}),
        ({"scheduler": "lcm", "steps": 51}, {"scheduler", "steps"}),
        ({"seed": -1}, {"seed"}),
        ({"seed": 2**32}, {"seed"}),
        ({"num_images": 5}, {"num_images"}),
        ({"output_format": "gif"}, {"output_format"}),
        ({"crop": "none"}, {"crop"}),
        ({"deterministic": "perhaps"}, {"deterministic"}),
        ({"model": "nope"}, {"model"}),
        ({"model": "../etc"}, {"model"}),
        ({"adapter": "nope"}, {"adapter"}),
        ({"image_weights": "1,1"}, {"image_weights"}),
        ({"image_weights": "x"}, {"image_weights"}),
        ({"image_weights": "0"}, {"image_weights"}),
        ({"control_type": "outline"}, {"control_type"}),
        ({"control_scale": 1}, {"control_scale"}),
        ({"webhook_url": "http://example.org"}, {"webhook_url"}),
        ({"webhook_url": "file:///etc/passwd"}, {"webhook_url"}),
        ({"prompt": "x" * 2001}, {"prompt"}),
        ({"steps": 0, "seed": -1, "crop": "x"}, {"steps", "seed", "crop"}),
        ({"prompts": "typo"}, {"prompts"}),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(api: Api, fields: dict[str, object], named: set[str]) -> None:
    before = api.leftovers()
    body = problem(api.post(fields), 422)
    assert {error["field"] for error in body["errors"]} == named
    assert all(name in body["detail"] for name in named)
    assert api.leftovers() == before


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"control_start": 0.5, "control_end": 0.5}, "control_start"),
        ({"control_start": 1}, "control_start"),
        ({"control_type": "depth"}, "control_type"),
        ({"control_scale": 3}, "control_scale"),
    ],
    ids=str,
)
def test_a_wrong_control_field_is_named(api: Api, fields: dict[str, object], named: str) -> None:
    files = [("image", ("a", PNG)), ("control_image", ("c", PNG))]
    body = problem(api.post(fields, files=files), 422)
    assert [error["field"] for error in body["errors"]] == [named]


@pytest.mark.parametrize("file", corpus.hostile_files(), ids=lambda file: file.name)
def test_a_hostile_file_leaves_nothing(api: Api, file: corpus.HostileFile) -> None:
    before = api.leftovers()
    files = [
        ("image", ("fine.png", PNG, "image/png")),
        ("image", (file.filename, file.data, file.content_type)),
    ]
    body = problem(api.post(files=files), file.status)
    assert body["errors"][0]["field"] == "image[1]"
    assert api.leftovers() == before


@pytest.mark.parametrize("sent", corpus.hostile_bodies(), ids=lambda sent: sent.name)
def test_a_hostile_body_leaves_nothing(api: Api, sent: corpus.HostileBody) -> None:
    before = api.leftovers()
    headers = {"content-type": sent.content_type} if sent.content_type else {}
    problem(api.client.post("/generate", content=sent.body, headers=headers), sent.status)
    assert api.leftovers() == before


@pytest.mark.parametrize("file", corpus.honest_files(), ids=lambda file: file.name)
def test_an_odd_but_honest_file_is_taken(api: Api, file: corpus.HonestFile) -> None:
    files = [("image", ("x.exe", file.data, file.content_type or None))]
    answer = api.post(files=files)
    assert answer.status_code == 202, answer.text
    shown = answer.json()["input"]["image"][0]
    assert (shown["width"], shown["height"]) == file.size


def peak_kib(api: Api) -> int:
    """Largest memory that the API process has had resident."""
    status = Path(f"/proc/{api.running.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1])


@pytest.mark.parametrize("announced", [True, False])
def test_an_endless_file_is_refused_and_memory_stays_flat(api: Api, announced: bool) -> None:  # noqa: FBT001 - a parameter of the test
    before, peak = api.leftovers(), peak_kib(api)
    total = 200 * 2**20
    headers = {"content-type": corpus.MULTIPART}
    if announced:
        headers["content-length"] = str(sum(map(len, corpus.endless_body(total))))
    try:
        answer = api.client.post("/generate", content=corpus.endless_body(total), headers=headers)
    except httpx.TransportError:
        pytest.fail("the connection was cut before the answer could be read")
    problem(answer, 413)
    assert peak_kib(api) - peak < 40 * 1024
    assert api.leftovers() == before


def test_a_body_over_the_limit_made_of_allowed_files_is_refused(api: Api) -> None:
    image = corpus.part("image", b"\x89PNG\r\n\x1a\n" + bytes(19 * 2**20), filename="a")
    body = image * 6 + corpus.END
    answer = api.client.post(
        "/generate", content=iter([body]), headers={"content-type": corpus.MULTIPART}
    )
    assert "104857600" in str(problem(answer, 413)["detail"])


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.integers(0, 700), flips=st.lists(st.integers(0, 700), max_size=5))
def test_damaged_bodies_are_never_a_fault(api: Api, cut: int, flips: list[int]) -> None:
    body = bytearray(corpus.part("image", PNG, filename="a") + corpus.END)
    for place in flips:
        body[place % len(body)] ^= 0x55
    content = bytes(body[: len(body) - cut % len(body)])
    answer = api.client.post(
        "/generate", content=content, headers={"content-type": corpus.MULTIPART}
    )
    assert answer.status_code in (202, 400, 415, 422)


def test_a_body_that_does_not_come_to_its_end_is_not_waited_for(
    make_api: Callable[..., Running], redis_url: str, storage_url: str
) -> None:
    settings = {"redis_url": redis_url, "storage_url": storage_url}
    with make_api(**settings, body_timeout_seconds=0.5) as running:
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        head = (
            "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            f"Content-Type: {corpus.MULTIPART}\r\n\r\n--{corpus.BOUNDARY}\r\n"
        )
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(head.encode())
            answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_client_that_hangs_up_while_sending_leaves_nothing(api: Api) -> None:
    before = api.leftovers()

    def stop_halfway() -> None:
        def pieces():  # type: ignore[no-untyped-def]
            yield corpus.part("image", PNG, filename="a")
            raise ConnectionAbortedError

        with pytest.raises(ConnectionAbortedError):
            httpx.post(
                f"{api.running.url}/generate",
                content=pieces(),
                headers={"content-type": corpus.MULTIPART},
            )

    stop_halfway()
    assert api.client.get("/healthz/live").status_code == 200
    assert api.leftovers() == before


def test_a_client_that_hangs_up_while_waiting_keeps_its_job(api: Api) -> None:
    known = {job["id"] for job in api.client.get("/jobs?limit=100").json()["jobs"]}
    with pytest.raises(httpx.ReadTimeout):
        api.post({"seed": 99}, headers={"prefer": "wait=30"}, timeout=1.0)
    jobs = api.client.get("/jobs?limit=100").json()["jobs"]
    new = [job for job in jobs if job["id"] not in known]
    assert [(job["status"], job["input"]["seed"]) for job in new] == [("queued", 99)]


def wait_and_finish(api: Api, **options: object) -> httpx.Response:
    """POST with `Prefer: wait`, while a worker does the job."""
    queued = set(api.redis.lrange("rq:queue:imageprompt", 0, -1))
    images = int(options.pop("images", 1))

    def work() -> None:
        deadline = time.monotonic() + 20
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
    answer = wait_and_finish(api, headers={"prefer": "wait=20"})
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.json()["status"] == "succeeded"
    assert "retry-after" not in answer.headers


def test_a_client_that_waits_for_a_picture_is_answered_its_bytes(api: Api) -> None:
    headers = {"prefer": "wait=20", "accept": "image/*"}
    answer = wait_and_finish(api, headers=headers)
    assert (answer.status_code, answer.content) == (200, PNG)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-seed"] == "7"
    assert answer.headers["x-job-id"] in answer.headers["location"]
    assert "Accept" in answer.headers["vary"]


def test_two_pictures_are_answered_as_json_whatever_is_preferred(api: Api) -> None:
    headers = {"prefer": "wait=20", "accept": "image/png"}
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


def test_a_trace_is_taken_over_only_where_it_is_one(api: Api) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    good = api.post(headers={"traceparent": trace}).json()["id"]
    bad = api.post(headers={"traceparent": trace + "\tx"}).json()["id"]
    assert api.redis.hget(keys.job(good), "traceparent") == trace.encode()
    assert api.redis.hget(keys.job(bad), "traceparent") is None
