"""Files that a request names by https URLs: fetched where that is allowed, within bounds."""

import asyncio
import io
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from service.core.errors import InvalidField, NotFound
from service.core.params import GenerateRequest
from service.core.settings import Settings
from service.submission.form import Form, Upload
from service.submission.links import Links
from service.webhooks import bounded_transport
from tests.service.webhooks.conftest import Receiver, make_receiver

__all__ = ["make_receiver"]


class NoFiles:
    """Stands for the files that were uploaded before."""

    async def read(self, _file_id: str, _owner: str) -> bytes:
        raise NotFound("There is no such file")


@pytest.fixture
def receiver(make_receiver: Callable[[], Receiver]) -> Receiver:
    made = make_receiver()
    made.pages["/a.png"] = (200, {}, b"picture")
    return made


@pytest.fixture
def fetch(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """Fetches what a URL in the field `image` stands for."""
    tls = ssl.create_default_context(cafile=str(receiver.certificate))
    monkeypatch.setattr(bounded_transport.ssl, "create_default_context", lambda: tls)

    def run(url: str, **settings: Any) -> bytes:
        own = {"input_urls": True, "input_networks": "127.0.0.0/8", "max_file_bytes": 1000}
        links = Links(NoFiles(), Settings(**own | settings))  # type: ignore[arg-type]
        form = Form(GenerateRequest)
        content = io.BytesIO(url.encode())
        form.files["image"] = [Upload("image", content, len(url), "", is_link=True)]

        async def resolve() -> bytes:
            try:
                await links.resolve(form, "a", share="a", base_url="http://api.example/")
                return form.files["image"][0].content.read()
            finally:
                await links.close()

        with form:
            return asyncio.run(resolve())

    return run


def refused(fetch: Callable[..., bytes], url: str, **settings: Any) -> str:
    with pytest.raises(InvalidField) as caught:
        fetch(url, **settings)
    [error] = caught.value.errors
    assert error.field == "image"
    return error.message


def test_a_url_is_fetched_and_its_redirects_followed(
    fetch: Callable[..., bytes], receiver: Receiver
) -> None:
    base = f"https://127.0.0.1:{receiver.port}"
    receiver.pages["/moved"] = (302, {"Location": "/a.png"}, b"")
    assert fetch(f"{base}/a.png") == b"picture"
    assert fetch(f"{base}/moved") == b"picture"
    receiver.pages["/round"] = (302, {"Location": "/round"}, b"")
    assert "redirects" in refused(fetch, f"{base}/round")


def test_no_url_is_fetched_unless_the_operator_allows_it(
    fetch: Callable[..., bytes], receiver: Receiver
) -> None:
    url = f"https://127.0.0.1:{receiver.port}/a.png"
    assert "does not fetch" in refused(fetch, url, input_urls=False)
    assert "public address" in refused(fetch, url, input_networks="")
    assert not receiver.seen


@pytest.mark.parametrize(
    "location", ["http://127.0.0.1/a.png", "https://10.0.0.1/a", "https://localhost/", "file:///a"]
)
def test_a_redirect_is_checked_as_the_url_is(
    fetch: Callable[..., bytes], receiver: Receiver, location: str
) -> None:
    receiver.pages["/moved"] = (302, {"Location": location}, b"")
    assert "public address" in refused(fetch, f"https://127.0.0.1:{receiver.port}/moved")


@pytest.mark.parametrize("location", ["https://[::1", "https://[x]/", "//["])
def test_a_redirect_to_no_url_is_refused(
    fetch: Callable[..., bytes], receiver: Receiver, location: str
) -> None:
    receiver.pages["/moved"] = (302, {"Location": location}, b"")
    assert "cannot be fetched" in refused(fetch, f"https://127.0.0.1:{receiver.port}/moved")


@pytest.mark.parametrize("url", ["https://[::1", "https://[x]/a", "https://1.1.1.1:0/"])
def test_what_is_no_url_is_refused(fetch: Callable[..., bytes], url: str) -> None:
    assert "public address" in refused(fetch, url)


def test_what_is_too_large_or_missing_is_refused(
    fetch: Callable[..., bytes], receiver: Receiver
) -> None:
    base = f"https://127.0.0.1:{receiver.port}"
    receiver.pages["/1000"] = (200, {}, bytes(1000))
    receiver.pages["/1001"] = (200, {}, bytes(1001))
    receiver.pages["/zipped"] = (200, {"Content-Encoding": "gzip"}, b"no gzip")
    assert len(fetch(f"{base}/1000")) == 1000
    assert "too large" in refused(fetch, f"{base}/1001")
    assert fetch(f"{base}/zipped") == b"no gzip", "it is not decoded"
    assert "404" in refused(fetch, f"{base}/none")
    assert "names no file" in refused(fetch, f"http://api.example/v1/files/{'0' * 36}")
