"""The package replicate, unchanged, against the API; the test plays the worker."""

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import replicate
from replicate.exceptions import ModelError, ReplicateError

from service.core import redis_keys
from service.core.job import JobError, JobMetrics
from service.core.transitions import Step
from service.submission import file_store
from tests.running import Running, until
from tests.service.conftest import PNG, Api, problem

MODEL = "imageprompt/shapes"


class Calls:
    """A client of one API, and what it has asked for."""

    def __init__(self, url: str, token: str = "any token while no key exists") -> None:
        self.seen: list[httpx.Request] = []
        self.polled = threading.Event()
        """Set once a prediction that was answered is asked for again."""
        self.client = replicate.Client(
            api_token=token, base_url=url, event_hooks={"request": [self._on_request]}
        )
        self.client.poll_interval = 0.05

    def _on_request(self, request: httpx.Request) -> None:
        self.seen.append(request)
        if request.method == "GET" and request.url.path.startswith("/v1/predictions/"):
            self.polled.set()

    @property
    def paths(self) -> list[str]:
        return [f"{request.method} {request.url.path}" for request in self.seen]


@pytest.fixture
def make_calls() -> Iterator[Callable[..., Calls]]:
    with ExitStack() as stack:

        def make(*arguments: str) -> Calls:
            made = Calls(*arguments)
            stack.callback(made.client._client.close)
            return made

        yield make


@pytest.fixture
def calls(api: Api, make_calls: Callable[..., Calls]) -> Calls:
    return make_calls(api.running.url)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def started(api: Api) -> Callable[[], str]:
    """Waits for the job that is queued next, and returns its id."""
    before = set(api.redis.keys(redis_keys.job("*")))

    def find() -> str:
        def new() -> set[bytes]:
            return set(api.redis.keys(redis_keys.job("*"))) - before

        [key] = until(new, what="a job")
        return key.decode().removeprefix(redis_keys.job(""))

    return find


def finished(api: Api, calls: Calls, run: "Future[Any]", job_id: str) -> Any:
    """What a call returns whose job ends only after it was polled."""
    assert calls.polled.wait(60)
    assert not run.done()
    api.finish(job_id)
    return run.result(60)


def test_run_uploads_a_file_and_returns_the_picture(
    api: Api, calls: Calls, pool: ThreadPoolExecutor, started: Callable[[], str], tmp_path: Path
) -> None:
    path = tmp_path / "prompt.png"
    path.write_bytes(PNG)
    with path.open("rb") as file:
        sent = {"image": file, "prompt": "a red star", "num_outputs": 1, "num_inference_steps": 7}
        run = pool.submit(calls.client.run, MODEL, input=sent)
        api.finish(started())
        [picture] = run.result(60)
    assert picture.read() == PNG
    assert calls.paths == ["POST /v1/files", f"POST /v1/models/{MODEL}/predictions"]
    job = api.client.get(f"/jobs/{started()}").json()
    assert job["input"]["steps"] == 7
    assert job["input"]["prompt"] == "a red star"


@pytest.mark.parametrize("wait", [1, False])
def test_run_polls_where_the_worker_is_slower_than_it_waits(
    api: Api, calls: Calls, pool: ThreadPoolExecutor, started: Callable[[], str], wait: object
) -> None:
    """Also where the job was being worked on when the wait was over."""
    run = pool.submit(calls.client.run, MODEL, input={"image": io.BytesIO(PNG)}, wait=wait)
    job_id = started()
    claim = api.claim(job_id)
    assert calls.polled.wait(60)
    api.transitions.hand_back(claim)
    [picture] = finished(api, calls, run, job_id)
    assert picture.read() == PNG


def test_a_version_is_run_by_its_id(
    api: Api, calls: Calls, pool: ThreadPoolExecutor, started: Callable[[], str]
) -> None:
    model = calls.client.models.get(MODEL)
    version = model.latest_version
    assert [one.id for one in model.versions.list()] == [version.id]
    properties = version.openapi_schema["components"]["schemas"]["Input"]["properties"]
    assert {"image", "prompt", "ip_scale"} <= set(properties)
    run = pool.submit(
        calls.client.run,
        f"{MODEL}:{version.id}",
        input={"image": [io.BytesIO(PNG), io.BytesIO(PNG)]},
        file_encoding_strategy="base64",
    )
    api.finish(started())
    assert run.result(60)[0].read() == PNG
    assert "POST /v1/files" not in calls.paths
    assert calls.paths[-1] == f"GET /v1/models/{MODEL}/versions/{version.id}"
    assert len(api.client.get(f"/jobs/{started()}").json()["input"]["image"]) == 2


@pytest.mark.parametrize(
    ("model", "sent", "status", "named"),
    [
        (MODEL, {"steps": 999}, 422, "steps"),
        (MODEL, {"image": "https://pictures.example/a.png"}, 422, "image"),
        (MODEL, {"nonsense": 1}, 422, "nonsense"),
        ("stability-ai/sdxl", {}, 404, "imageprompt/NAME"),
        (f"{MODEL}:{'0' * 64}", {}, 422, "version"),
    ],
)
def test_what_is_wrong_is_named(
    calls: Calls, model: str, sent: dict[str, Any], status: int, named: str
) -> None:
    with pytest.raises(ReplicateError) as caught:
        calls.client.run(model, input=sent)
    assert caught.value.status == status
    assert named in caught.value.detail


def test_predictions_are_listed_canceled_and_reloaded(api: Api, calls: Calls) -> None:
    model = calls.client.models.get(MODEL)
    made = [
        calls.client.predictions.create(model.latest_version, input={"prompt": f"number {n}"})
        for n in range(2)
    ]
    assert [one.status for one in made] == ["starting"] * 2
    assert made[0].model == MODEL
    claim = api.claim(made[0].id)
    api.transitions.progress([Step(claim, 12, 30)])
    made[0].reload()
    assert (made[0].status, made[0].progress.current) == ("processing", 12)
    made[1].cancel()
    assert made[1].status == "canceled"
    listed = calls.client.predictions.list()
    assert [one.id for one in listed][:2] == [made[1].id, made[0].id]
    made[0].cancel()


def test_a_list_has_pages(api: Api, calls: Calls) -> None:
    ids = [api.job() for _ in range(2)]
    first = api.client.get("/v1/predictions?limit=1").json()
    following = calls.client.predictions.list(first["next"])
    assert [first["results"][0]["id"], following[0].id] == ids[::-1]
    page = api.client.get("/v1/predictions?cursor=nonsense")
    assert problem(page, 422)["errors"][0]["field"] == "cursor"


def test_a_failed_prediction_raises_its_cause(
    api: Api, calls: Calls, pool: ThreadPoolExecutor, started: Callable[[], str]
) -> None:
    run = pool.submit(calls.client.run, MODEL, input={"prompt": "x"})
    claim = api.claim(started())
    api.transitions.fail(
        claim, JobError(type="urn:x", title="Out of memory", detail="too large"), JobMetrics()
    )
    with pytest.raises(ModelError, match="too large"):
        run.result(60)


def test_a_stream_has_progress_the_pictures_and_an_end(api: Api, calls: Calls) -> None:
    prediction = calls.client.predictions.create(
        calls.client.models.get(MODEL).latest_version, input={"prompt": "x"}, stream=True
    )
    claim = api.claim(prediction.id)
    api.transitions.progress([Step(claim, 15, 30)])
    api.transitions.hand_back(claim)
    api.finish(prediction.id)
    events = list(prediction.stream())
    assert [event.event.value for event in events] == ["logs", "output", "done"]
    assert "50%" in events[0].data
    assert events[1].data.read() == PNG
    assert all(event.id for event in events)


def test_a_stream_of_a_failed_prediction_raises(api: Api, calls: Calls) -> None:
    prediction = calls.client.predictions.create(
        calls.client.models.get(MODEL).latest_version, input={"prompt": "x"}
    )
    api.transitions.fail(
        api.claim(prediction.id),
        JobError(type="urn:x", title="t", detail="too large"),
        JobMetrics(),
    )
    with pytest.raises(RuntimeError, match="too large"):
        list(prediction.stream())


def test_files_are_kept_until_they_are_deleted(api: Api, calls: Calls, tmp_path: Path) -> None:
    path = tmp_path / "a picture.png"
    path.write_bytes(PNG)
    file = calls.client.files.create(path, metadata={"by": "me"})
    assert (file.name, file.content_type, file.size) == ("a picture.png", "image/png", len(PNG))
    assert calls.client.files.get(file.id).metadata == {"by": "me"}
    assert file.id in [one.id for one in calls.client.files.list()]
    stored = api.folder / redis_keys.stored_file(file.id)
    assert stored.read_bytes() == PNG
    assert calls.client.files.delete(file.id)
    assert not stored.exists()
    with pytest.raises(ReplicateError) as caught:
        calls.client.run(MODEL, input={"image": file.urls["get"]})
    assert (caught.value.status, "image" in caught.value.detail) == (422, True)


@pytest.mark.parametrize(
    "metadata",
    [
        r'{"a": "\ud800"}',
        r'{"\ud800": 1}',
        '{"a": ' + "[" * 500 + "]" * 500 + "}",
        "[" * 20_000,
        '{"a": NaN}',
        '{"a": [-1e999]}',
        '{"a": 1, "a": 2}',
        "[]",
        "{",
    ],
    ids=lambda text: text[:20],
)
def test_metadata_that_cannot_be_kept_are_refused_before_the_file_is(
    api: Api, metadata: str
) -> None:
    stored = set(api.folder.rglob("*"))
    answer = api.client.post(
        "/v1/files", files={"content": ("a.png", PNG)}, data={"metadata": metadata}
    )
    assert (answer.status_code, "metadata: " in answer.text) == (422, True), answer.text
    assert set(api.folder.rglob("*")) == stored


def test_one_file_too_many_replaces_the_oldest(api: Api, calls: Calls) -> None:
    first = calls.client.files.create(io.BytesIO(PNG))
    for _ in range(file_store.MAX_FILES):
        calls.client.files.create(io.BytesIO(PNG))
    assert len(calls.client.files.list()) == file_store.MAX_FILES
    assert not (api.folder / redis_keys.stored_file(first.id)).exists()
    assert 0 < api.redis.ttl(redis_keys.file(calls.client.files.list()[0].id)) <= 3600


def test_a_key_has_a_webhook_secret_and_files_of_its_own(
    api: Api,
    make_api: Callable[..., Running],
    make_calls: Callable[..., Calls],
    redis_url: str,
    tmp_path: Path,
) -> None:
    problem(api.client.get("/v1/webhooks/default/secret"), 404)
    key = f"ip_{'0a' * 6}_{'k' * 43}"
    settings = {"redis_url": redis_url, "storage_url": tmp_path.as_uri()}
    with make_api(**settings, bootstrap_key=key) as running:
        client = make_calls(running.url, key).client
        assert client.webhooks.default.secret().key.startswith("whsec_")
        file = client.files.create(io.BytesIO(PNG))
        refused = httpx.get(f"{running.url}/v1/files/{file.id}")
        problem(refused, 401)
        with pytest.raises(ReplicateError) as caught:
            make_calls(running.url, "no key").client.webhooks.default.secret()
        assert caught.value.status == 401


def test_a_webhook_that_would_never_be_sent_is_refused(api: Api, calls: Calls) -> None:
    sent = {"model": MODEL, "input": {"prompt": "a red star"}, "webhook": "https://app.example/in"}
    before = api.redis.keys(redis_keys.job("*"))
    with pytest.raises(ReplicateError) as caught:
        calls.client.predictions.create(**sent, webhook_events_filter=["logs"])
    assert caught.value.status == 422
    assert "webhook_events_filter: " in caught.value.detail
    assert api.redis.keys(redis_keys.job("*")) == before


def test_a_stream_continues_after_the_last_event_that_was_read(api: Api) -> None:
    """As `GET /jobs/{id}/events` does: an EventSource reconnects until it is told to stop."""
    job_id = api.job({"steps": 5})
    api.finish(job_id)
    path = f"/v1/predictions/{job_id}/stream"
    ids = [
        line.removeprefix("id: ")
        for line in api.client.get(path).text.splitlines()
        if line.startswith("id: ")
    ]
    assert ids
    assert api.client.get(path, headers={"last-event-id": ids[-1]}).status_code == 204
    assert api.client.get(path, headers={"last-event-id": "0-1"}).status_code == 200
    problem(api.client.get(path, headers={"last-event-id": "x"}), 422)
    assert api.client.delete(f"/jobs/{job_id}").status_code == 204
