"""No value of a header that is parsed makes an answer a 500, whatever it holds."""

from collections.abc import Callable, Iterator, Sequence

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.running import KEEP, Running
from tests.service.conftest import Api

NAMES = (
    *("host", "forwarded", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto"),
    *("x-forwarded-for", "x-forwarded-prefix", "origin", "referer", "sec-fetch-site", "prefer"),
    *("if-none-match", "last-event-id", "accept", "authorization", "x-api-key", "range"),
    *("idempotency-key", "traceparent", "tracestate", "content-type", "content-encoding"),
    *("access-control-request-method", "access-control-request-headers", "cookie", "connection"),
)
GARBAGE = [
    *(b"", b"\xff", b"\xc3\xa9", b"\xd9\xa1", b"http://[", b"http://[x]", b"http://[::::]:99999"),
    *(b"//[", b"a:99999", b"[::::]", b"[::1", b"]", b"a:x", b'"', b'"\\', b",,;;==", b"*/*;q=\xb2"),
    *(b"wait=\xb2", b"wait=99999999999999999999", b"Bearer \xe9", b"Bearer", b'for="[', b"%ff%"),
    *(b'host="[::::]"', b"host=a:99999", b'host="\xff"', b"0-99999999999999999999", b'W/"'),
    *(b"multipart/form-data; boundary=\xff", b"multipart/form-data; boundary*=x''%ff", b"x" * 5000),
    b"application/json; charset=\xff",
]
ASKED: list[tuple[str, str]] = [
    *(("GET", "/jobs"), ("GET", "/jobs/x"), ("GET", "/jobs/{job}"), ("GET", "/openapi.json")),
    *(
        ("GET", "/jobs/{ended}/events"),
        ("GET", "/jobs/{ended}/images/0"),
        ("GET", "/"),
        ("GET", "/x"),
    ),
    *(("POST", "/generate"), ("POST", "/hf/shapes"), ("POST", "/v1/images/generations")),
    *(("POST", "/v1/predictions"), ("POST", "/v1/files"), ("OPTIONS", "/generate")),
]

ROUNDS = 5


@pytest.fixture(scope="module")
def proxied(api: Api, make_api: Callable[..., Running]) -> Iterator[httpx.Client]:
    """An API that believes the headers of a proxy and answers other origins."""
    settings = {
        "trusted_proxies": "127.0.0.0/8",
        "cors_origins": "https://app.example",
        "storage_url": api.folder.as_uri(),
        "redis_url": api.redis_url,
    }
    with (
        make_api(**settings) as running,
        httpx.Client(base_url=running.url, timeout=60, limits=KEEP) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def places(api: Api) -> dict[str, str]:
    """A job that stands still, and one that has ended."""
    ended = api.job()
    api.finish(ended)
    return {"job": api.job(), "ended": ended}


def check(
    client: httpx.Client,
    places: dict[str, str],
    name: str,
    value: bytes,
    asked: Sequence[tuple[str, str]] = ASKED,
) -> None:
    """Ask for `asked` with this header."""
    if name == "prefer" and value.strip().startswith(b"wait"):
        value += b", wait=0"
    for method, path in asked:
        headers = [(name.encode(), value)]
        content = b"" if method == "GET" else b'{"size":"1x1","input":{"width":1},"width":1}'
        if name != "content-type":
            headers.append((b"content-type", b"application/json"))
        url = client.base_url.join(path.format(**places))
        request = httpx.Request(method, url, headers=headers, content=content)
        try:
            answer = client.send(request)
        except (httpx.LocalProtocolError, httpx.InvalidURL):
            return  # no client can send it
        assert answer.status_code < 500, (method, path, answer.text)


@pytest.mark.parametrize("name", NAMES)
def test_known_garbage(proxied: httpx.Client, places: dict[str, str], name: str) -> None:
    """Each value on some of the routes, so that each route meets some of the values."""
    for number, value in enumerate(GARBAGE):
        check(proxied, places, name, value, ASKED[number % ROUNDS :: ROUNDS])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(NAMES),
    value=st.one_of(
        st.binary(max_size=40),
        st.lists(st.sampled_from([*GARBAGE, b":", b"[", b"]", b"/", b"@", b";", b"1"])).map(
            b"".join
        ),
    ),
)
def test_any_garbage(
    proxied: httpx.Client, places: dict[str, str], name: str, value: bytes
) -> None:
    check(proxied, places, name, value.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b""))
