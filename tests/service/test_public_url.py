"""Links lead where clients reach the service: proxies, ports, TLS and sub-paths."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from service.core.settings import Settings
from service.public_url import ProxyMiddleware
from tests.running import Running
from tests.service.conftest import PNG

INNER = "10.0.0.5"


def seen(
    headers: dict[str, str], *, client: str = INNER, path: str = "/jobs", **settings: object
) -> tuple[str, str, str, str]:
    """Scheme, host, client and path of a request as the application sees it."""
    found: dict[str, Any] = {}

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        found.update(scope)

    fields: dict[str, object] = {"trusted_proxies": ("10.0.0.0/8",), **settings}
    middleware = ProxyMiddleware(app, Settings.model_validate(fields))
    scope = {
        "type": "http",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "client": (client, 1),
        "headers": [
            (name.lower().encode(), value.encode())
            for name, value in {"host": "inner:8000", **headers}.items()
        ],
    }
    asyncio.run(middleware(scope, None, None))  # type: ignore[arg-type]  # neither is called
    host = dict(found["headers"])[b"host"].decode()
    return found["scheme"], host, found["client"][0], found["path"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, ("http", "inner:8000", INNER)),
        (
            {"forwarded": 'for=192.0.2.7;proto=https;host="api.example:8443"'},
            ("https", "api.example:8443", "192.0.2.7"),
        ),
        (
            {"forwarded": 'For="[2001:db8::7]:443"; Proto=HTTPS; Host=api.example'},
            ("https", "api.example", "2001:db8::7"),
        ),
        (  # what the client itself had sent comes first and does not count
            {"forwarded": "for=6.6.6.6;host=evil, for=192.0.2.7;proto=https;host=a.example"},
            ("https", "a.example", "192.0.2.7"),
        ),
        (  # two trusted proxies
            {"forwarded": "for=192.0.2.7;proto=https;host=a.example, for=10.0.0.9;host=inner"},
            ("https", "a.example", "192.0.2.7"),
        ),
        ({"forwarded": "for=unknown;proto=https"}, ("https", "inner:8000", INNER)),
        ({"forwarded": 'for="'}, ("http", "inner:8000", INNER)),
        ({"forwarded": 'host="a b/c"'}, ("http", "inner:8000", INNER)),
        ({"forwarded": "proto=ftp"}, ("http", "inner:8000", INNER)),
        (
            {
                "x-forwarded-for": "192.0.2.7",
                "x-forwarded-proto": "https",
                "x-forwarded-host": "api.example",
            },
            ("https", "api.example", "192.0.2.7"),
        ),
        (
            {
                "x-forwarded-for": "6.6.6.6, 192.0.2.7, 10.0.0.9",
                "x-forwarded-proto": "https",
                "x-forwarded-host": "api.example",
            },
            ("https", "api.example", "192.0.2.7"),
        ),
        (
            {
                "x-forwarded-proto": "http",
                "x-forwarded-host": "api.example",
                "x-forwarded-port": "8080",
            },
            ("http", "api.example:8080", INNER),
        ),
        (
            {
                "x-forwarded-proto": "https",
                "x-forwarded-host": "api.example",
                "x-forwarded-port": "443",
            },
            ("https", "api.example", INNER),
        ),
        ({"x-forwarded-host": "a:99999"}, ("http", "inner:8000", INNER)),
        ({"x-forwarded-host": "[::::]"}, ("http", "inner:8000", INNER)),
        ({"x-forwarded-host": "a", "x-forwarded-port": "99999"}, ("http", "a", INNER)),
        ({"x-forwarded-host": "a", "x-forwarded-port": "\u0661"}, ("http", "a", INNER)),
        ({"forwarded": 'host="[::::]"'}, ("http", "inner:8000", INNER)),
        ({"forwarded": 'host="a:99999"'}, ("http", "inner:8000", INNER)),
    ],
)
def test_headers_of_trusted_proxies_count(
    headers: dict[str, str], expected: tuple[str, str, str]
) -> None:
    assert seen(headers)[:3] == expected


def test_headers_of_others_do_not_count() -> None:
    headers = {
        "forwarded": "for=1.1.1.1;proto=https;host=evil.example",
        "x-forwarded-host": "evil.example",
        "x-forwarded-prefix": "/evil",
    }
    assert seen(headers, client="192.0.2.1") == ("http", "inner:8000", "192.0.2.1", "/jobs")
    assert seen(headers, trusted_proxies=()) == ("http", "inner:8000", INNER, "/jobs")


@pytest.mark.parametrize("path", ["/jobs", "/api/v1/jobs"])
def test_a_prefix_may_be_removed_by_the_proxy_or_not(path: str) -> None:
    assert seen({"x-forwarded-prefix": "/api/v1/"}, path=path)[3] == "/api/v1/jobs"
    assert seen({}, path=path, public_url="https://a.example/api/v1")[3] == "/api/v1/jobs"
    assert seen({"x-forwarded-prefix": "/../x y"})[3] == "/jobs"


def test_the_public_url_wins() -> None:
    """The client's address still comes from the proxy."""
    headers = {"forwarded": "for=192.0.2.7;proto=http;host=b.example"}
    assert seen(headers, public_url="https://a.example:8443/x") == (
        "https",
        "a.example:8443",
        "192.0.2.7",
        "/x/jobs",
    )


def test_every_link_of_a_running_api_is_public(
    make_api: Callable[..., Running], redis_url: str, storage_url: str
) -> None:
    public = "https://pictures.example:8443/studio"
    with (
        make_api(redis_url=redis_url, storage_url=storage_url, public_url=public + "/") as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        answer = client.post("/generate", files={"image": ("a", PNG)})
        job = answer.json()
        link = f"{public}/jobs/{job['id']}"
        assert answer.headers["location"] == link
        assert job["urls"] == {"self": link, "cancel": f"{link}/cancel", "events": f"{link}/events"}
        client.post("/generate", files={"image": ("a", PNG)})
        following = client.get("/jobs?limit=1").json()["next"]
        assert following.startswith(f"{public}/jobs?")
        assert client.get(f"/studio/jobs/{job['id']}").status_code == 200
        assert client.get(f"/jobs/{job['id']}").status_code == 200
