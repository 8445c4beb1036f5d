"""Files that a request names by their URL: those uploaded before, and https URLs where allowed."""

import re
from http import HTTPStatus
from typing import Final
from urllib.parse import urljoin

from service.core.errors import Busy, FieldError, InvalidField, NotFound, TooLarge
from service.core.settings import Settings
from service.limits import FairShare
from service.submission.file_store import FileStore
from service.submission.form import FileSink, Form, Upload
from service.webhooks.bounded_transport import CheckedClient, RequestFailed
from service.webhooks.url_policy import TooManyLookups, may_be_called

MAX_URL: Final = 2000
TIMEOUT_SECONDS: Final = 20.0
"""For each file, and each redirect on the way to it."""
MAX_REDIRECTS: Final = 3
MAX_FETCHES: Final = 16
"""At once, of all requests; each takes as much memory as its file has bytes."""
BUSY_SECONDS: Final = 5
_STORED: Final = re.compile(r"v1/files/([0-9a-f-]{36})")


class Links:
    """Fetches the files of forms that name them by URL."""

    def __init__(self, files: FileStore, settings: Settings) -> None:
        self._files = files
        self._settings = settings
        self._slots = FairShare(MAX_FETCHES)
        self._client = CheckedClient(
            settings.input_networks,
            timeout_seconds=TIMEOUT_SECONDS,
            max_body_bytes=settings.max_file_bytes,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def resolve(self, form: Form, owner: str, *, share: str, base_url: str) -> None:
        """Put the files in the place of their URLs.

        Raises `InvalidField` naming the field whose URL is refused or brings no file, `TooLarge`,
        and `Busy` where too many are being fetched.
        """
        for name, uploads in form.files.items():
            for number, upload in enumerate(uploads):
                if upload.is_link:
                    url = upload.content.read(MAX_URL + 1).decode(errors="replace")
                    data = await self._bytes(name, url, owner, share, base_url)
                    uploads[number] = await self._received(name, data, form)

    async def _received(self, name: str, data: bytes, form: Form) -> Upload:
        form.size_bytes += len(data)
        if form.size_bytes > self._settings.max_body_bytes:
            raise TooLarge(what="The body with its files", limit=self._settings.max_body_bytes)
        sink = FileSink(name, self._settings.max_file_bytes)
        sink.write(data)
        return await sink.finish(form)

    async def _bytes(self, name: str, url: str, owner: str, share: str, base_url: str) -> bytes:
        stored = _STORED.fullmatch(url.removeprefix(base_url))
        if stored is not None:
            try:
                return await self._files.read(stored[1], owner)
            except NotFound as error:
                raise _refused(name, f"names no file: {error.detail}") from None
        if not self._settings.input_urls:
            raise _refused(name, "must be a file: this service does not fetch URLs")
        if not self._slots.take(share):
            raise Busy("Too many files are being fetched", retry_after_seconds=BUSY_SECONDS)
        try:
            return await self._fetched(name, url, share)
        except TooManyLookups:
            raise Busy(
                "Too many names are being resolved", retry_after_seconds=BUSY_SECONDS
            ) from None
        finally:
            self._slots.release(share)

    async def _fetched(self, name: str, url: str, share: str) -> bytes:
        headers = {"Accept": "image/*", "Accept-Encoding": "identity"}
        for _ in range(1 + MAX_REDIRECTS):
            if len(url) > MAX_URL or not may_be_called(url, self._settings.input_networks):
                raise _refused(name, "must be an https URL of a public address")
            try:
                answer = await self._client.send("GET", url, owner=share, headers=headers)
            except RequestFailed:
                raise _refused(name, "cannot be fetched, or is too large") from None
            if answer.is_redirect:
                try:
                    url = urljoin(url, answer.headers.get("location", ""))
                except ValueError:  # half an IPv6 address
                    raise _refused(name, "cannot be fetched: it redirects to no URL") from None
                continue
            if answer.status_code != HTTPStatus.OK:
                status = answer.status_code
                raise _refused(name, f"cannot be fetched: its server answers {status}")
            return answer.content
        raise _refused(name, f"cannot be fetched: it redirects more than {MAX_REDIRECTS} times")


def _refused(name: str, message: str) -> InvalidField:
    return InvalidField.of(FieldError(name, message))
