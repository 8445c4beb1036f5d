"""Without a key, no web page of others and no rebound name may use the service; with CORS, some."""

from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.running import Running
from tests.service.conftest import PNG, Api, problem

APP = "https://app.example"


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"host": "evil.example"},
        {"host": "evil.example:8000", "sec-fetch-site": "same-origin"},
        {"host": "localhost.evil.example"},
        {"host": "127.0.0.1.evil.example"},
    ],
)
def test_pages_of_others_are_refused(api: Api, headers: dict[str, str]) -> None:
    before = api.redis.dbsize()
    problem(api.post(headers=headers), 403)
    assert api.redis.dbsize() == before
    for path in ("/jobs", f"/jobs/{'0' * 36}"):
        problem(api.client.get(path, headers=headers), 403)


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"host": "localhost:8000"},
        {"host": "[::1]:8000"},
        {"host": "192.168.1.9"},
        {"host": "gpu-box"},
        {"host": "gpu-box.local:8000"},
        {"host": "gpu-box:8000", "origin": "http://gpu-box:8000"},
        {"authorization": "Bearer anything"},
        {"x-api-key": "anything"},
    ],
)
def test_the_service_s_own_pages_and_other_programs_are_served(
    api: Api, headers: dict[str, str]
) -> None:
    assert api.client.get("/jobs", headers=headers).status_code == 200


@pytest.fixture(scope="module")
def open_api(api: Api, make_api: Callable[..., Running]) -> Iterator[httpx.Client]:
    """An API that pages of one other site may use, under names of its own."""
    with (
        make_api(
            redis_url=api.redis_url,
            storage_url=api.folder.as_uri(),
            cors_origins=f"{APP},http://localhost:3000",
            allowed_hosts="pictures.example",
            public_url="https://public.example/",
        ) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("referrer", "status"),
    [
        (f"{APP}/", 200),
        ("http://localhost:3000/gallery", 200),
        ("https://evil.example/https://app.example/", 403),
        ("https://app.example.evil.example/", 403),
        ("https://[", 403),
        (None, 403),
    ],
)
def test_an_image_element_of_an_allowed_origin_is_served(
    open_api: httpx.Client, referrer: str | None, status: int
) -> None:
    """It sends no `Origin`; the browser itself writes the referrer."""
    sent = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    headers = sent | ({} if referrer is None else {"referer": referrer})
    assert open_api.get("/jobs", headers=headers).status_code == status


def test_an_allowed_origin_may_use_the_service(open_api: httpx.Client) -> None:
    page = {"origin": APP, "sec-fetch-site": "cross-site"}
    asked = open_api.options(
        "/generate",
        headers=page
        | {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, prefer, idempotency-key",
        },
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == APP
    answer = open_api.post("/generate", files={"image": ("a", PNG)}, headers=page)
    assert answer.status_code == 202
    assert answer.headers["access-control-allow-origin"] == APP
    exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
    wanted = {"location", "retry-after", "x-job-id", "x-seed", "ratelimit", "ratelimit-policy"}
    assert wanted <= set(exposed)
    failed = open_api.get("/jobs/unknown", headers=page)
    assert failed.status_code == 404
    assert failed.headers["access-control-allow-origin"] == APP, "errors can be read as well"


def test_other_origins_are_still_refused(open_api: httpx.Client) -> None:
    page = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    answer = open_api.post("/generate", files={"image": ("a", PNG)}, headers=page)
    problem(answer, 403)
    assert "access-control-allow-origin" not in answer.headers


def test_without_the_setting_no_origin_may_read(api: Api) -> None:
    answer = api.client.get("/healthz/live", headers={"origin": APP})
    assert "access-control-allow-origin" not in answer.headers


def test_names_of_the_operator_are_known(open_api: httpx.Client, api: Api) -> None:
    assert api.client.get("/jobs", headers={"host": "pictures.example"}).status_code == 403
    assert open_api.get("/jobs", headers={"host": "pictures.example"}).status_code == 200


def test_head_is_served_wherever_get_is(api: Api) -> None:
    job_id = api.job()
    api.finish(job_id)
    paths = ["/jobs", f"/jobs/{job_id}", f"/jobs/{job_id}/images/0", "/models", "/openapi.json"]
    paths += ["/metrics", "/healthz/live", "/docs", f"/jobs/{job_id}/events"]
    for path in paths:
        answer = api.client.head(path)
        assert (path, answer.status_code, answer.content) == (path, 200, b"")
    running = api.job()
    assert api.client.head(f"/jobs/{running}/events").status_code == 200, "and does not wait"
    assert api.client.head("/generate").status_code == 405
    assert api.client.head("/jobs/unknown").status_code == 404
