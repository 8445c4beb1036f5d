"""The page and the API console as files: found, packed, kept, and of this host alone."""

import base64
import gzip
import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from tests.running import Running, connects, until
from tests.service.conftest import Api, problem

STATIC = Path(__file__).parents[2] / "service" / "static"
LISTED = (STATIC / "VENDORED.md").read_text()
VENDORED = re.findall(r"^\| `(\S+)` \|.*`(\w{64})` \|$", LISTED, re.MULTILINE)
OWN = [
    path
    for path in sorted(STATIC.rglob("*.*"))
    if path.relative_to(STATIC).as_posix() not in dict(VENDORED) and path.suffix != ".md"
]


def linked(api: Api) -> list[str]:
    """Every file that the page names."""
    return re.findall(r'(?:href|src)="(static/[^"]+)"', api.client.get("/").text)


def test_the_page_names_all_its_modules_and_each_is_served(api: Api) -> None:
    """What it does not name in its head would be asked for late, one after another."""
    names = {re.sub(r"^static/\w+/", "", name) for name in linked(api)}
    modules = {path.relative_to(STATIC / "page").as_posix() for path in STATIC.glob("page/**/*.js")}
    assert modules <= names
    for name in linked(api):
        answer = api.client.get(f"/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"


def test_scripts_and_styles_of_the_page_come_from_files_alone(api: Api) -> None:
    answer = api.client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "script-src 'self'" in policy
    assert "style-src 'self'" in policy
    assert not re.search(r"<style|<script(?![^>]* src=)|style=| on\w+=", answer.text)


@pytest.mark.parametrize("path", ["/", "/docs", "/docs/plain", "/docs/scalar.js"])
def test_a_browser_that_has_it_gets_it_no_second_time(api: Api, path: str) -> None:
    first = api.client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = api.client.get(path, headers={"If-None-Match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    head = api.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == first.headers["content-length"]


@pytest.mark.parametrize("path", ["/", "/docs/scalar.js"])
def test_it_is_sent_packed_to_who_can_unpack_it(api: Api, path: str) -> None:
    packed = api.client.get(path, headers={"Accept-Encoding": "br, gzip"})
    plain = api.client.get(path, headers={"Accept-Encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.content == plain.content
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert int(packed.headers["content-length"]) < len(plain.content) / 2


def test_a_file_of_another_version_is_served_and_not_kept(api: Api) -> None:
    """As an open page asks for it from a process that was updated."""
    name = re.sub(r"^static/\w+/", "", linked(api)[0])
    answer = api.client.get(f"/static/before/{name}")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache")


@pytest.mark.parametrize(
    "path",
    ["/static/x/nothing.js", "/static/x/vendor/LICENSE-htm", "/static/x/%2e%2e/x", "/docs/x"],
)
def test_nothing_else_is_served_from_the_folder(api: Api, path: str) -> None:
    problem(api.client.get(path), 404)


def test_the_form_is_described_as_in_the_openapi_document_with_nothing_to_look_up(api: Api) -> None:
    form = api.client.get("/static/x/form.json").json()
    document = api.client.get("/openapi.json").json()
    declared = document["components"]["schemas"]["GenerateForm"]
    assert "$ref" not in repr(form)
    assert list(form["schema"]["properties"]) == list(declared["properties"])
    reference = declared["properties"]["scheduler"]["$ref"].rpartition("/")[2]
    choices = document["components"]["schemas"][reference]["enum"]
    assert form["schema"]["properties"]["scheduler"]["enum"] == choices
    for name in form["examples"]:
        answer = api.client.get(f"/static/x/examples/{name}")
        assert answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_no_file_of_ours_names_another_host(path: Path) -> None:
    named = set(re.findall(r"https?://([\w.-]+)", path.read_text(errors="ignore")))
    assert named <= {"www.w3.org", "127.0.0.1"}


@pytest.mark.parametrize(("name", "digest"), VENDORED)
def test_a_vendored_file_is_the_one_that_is_listed(name: str, digest: str) -> None:
    data = (STATIC / name).read_bytes()
    data = gzip.decompress(data) if name.endswith(".gz") else data
    assert hashlib.sha256(data).hexdigest() == digest


def test_every_vendored_file_is_listed() -> None:
    found = {*STATIC.glob("page/vendor/*.js"), *STATIC.glob("**/*.gz")}
    assert {path.relative_to(STATIC).as_posix() for path in found} == set(dict(VENDORED))


def test_the_plain_docs_work_without_scripts_and_other_hosts(api: Api) -> None:
    answer = api.client.get("/docs/plain")
    assert answer.headers["content-type"].startswith("text/html")
    assert "script" not in answer.headers["content-security-policy"]
    assert not re.search(r"<script|src=", answer.text)
    for operations in api.client.get("/openapi.json").json()["paths"]:
        assert f"127.0.0.1:8000{operations}" in answer.text, "each operation has its curl line"
    assert "Last-Event-ID" in answer.text
    assert 'href="../docs"' in answer.text


def test_the_guide_checks_signatures_as_they_are_made() -> None:
    guide = (STATIC / "console" / "guide.md").read_text()
    [code] = [block for block in re.findall(r"```\n(.*?)```", guide, re.DOTALL) if "def " in block]
    scope: dict[str, Any] = {}
    exec(code, scope)
    now = datetime.now(UTC)
    for size in (24, 25, 32):
        secret = "whsec_" + base64.b64encode(bytes(range(size))).decode()
        headers = {
            "webhook-id": "msg_1",
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign("msg_1", now, '{"a": 1}'),
        }
        assert scope["is_genuine"](secret, headers, b'{"a": 1}')
        assert not scope["is_genuine"](secret, headers, b'{"a": 2}')
        stale = headers | {"webhook-timestamp": str(int(now.timestamp()) - 3600)}
        assert not scope["is_genuine"](secret, stale, b'{"a": 1}')


def test_the_page_is_for_clients_and_the_console_for_operators(
    make_api: Callable[..., Running], redis_url: str, storage_url: str, free_port: int
) -> None:
    settings = {"redis_url": redis_url, "storage_url": storage_url, "admin_port": free_port}
    with make_api(**settings) as running:
        admin = f"http://127.0.0.1:{free_port}"
        until(lambda: connects("127.0.0.1", free_port), what="the admin port")
        assert httpx.get(f"{running.url}/", timeout=60).status_code == 200
        form = httpx.get(f"{running.url}/static/x/form.json", timeout=60).json()
        assert form["console"] is False
        assert "image" in form["schema"]["properties"], "where there is no /openapi.json, too"
        for path in ("/docs", "/docs/plain", "/docs/scalar.js"):
            assert httpx.get(running.url + path, timeout=60).status_code == 404, path
            assert httpx.get(admin + path, timeout=60).status_code == 200, path
        for path in ("/", "/static/x/form.json", "/static/x/page.css"):
            assert httpx.get(admin + path, timeout=60).status_code == 404, path


def test_without_the_page_the_api_is_the_same(
    make_api: Callable[..., Running], redis_url: str, storage_url: str
) -> None:
    with make_api(redis_url=redis_url, storage_url=storage_url, page=False) as running:
        for path in ("/", "/static/x/page.css"):
            assert httpx.get(running.url + path, timeout=60).status_code == 404
        for path in ("/models", "/jobs", "/docs", "/openapi.json"):
            assert httpx.get(running.url + path, timeout=60).status_code == 200
