"""A small HTTP client of the service for the command line."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import httpx

FINAL: Final = frozenset({"succeeded", "failed", "canceled", "expired"})
POLL_SECONDS: Final = 0.2
"""Between two requests, however fast the job changes."""
HELD_SECONDS: Final = 30
"""So long the service may hold its answer until the job has changed."""
UNAVAILABLE_SECONDS: Final = 60.0
"""How long a service that does not respond is polled for a job that it has accepted."""

Job = dict[str, Any]


class ClientError(Exception):
    """Raised when the service cannot be reached or refuses a request; the message is for users."""


class Client:
    """Submits jobs and fetches their results."""

    def __init__(self, url: str, key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=60, follow_redirects=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._http.close()

    def submit(self, uploads: Mapping[str, Sequence[Path]], fields: Mapping[str, object]) -> Job:
        """Submit one job. Raises `ClientError` with the service's reason where it is refused."""
        files = [
            (name, (path.name, path.read_bytes()))
            for name, paths in uploads.items()
            for path in paths
        ]
        data = {name: str(value) for name, value in fields.items() if value is not None}
        return self._json(self._ask("POST", "/generate", files=files, data=data))

    def watch(self, job: Job) -> Iterator[Job]:
        """Yield the job after each change until it is final.

        Raises `ClientError` where the service stays unavailable.
        """
        responded_at = time.monotonic()
        yield job
        headers = {"Prefer": f"wait={HELD_SECONDS}"}  # until it is another than the one seen
        while job["status"] not in FINAL:
            time.sleep(POLL_SECONDS)
            try:
                answer = self._ask("GET", f"/jobs/{job['id']}", headers=headers)
            except Unavailable:
                if time.monotonic() - responded_at > UNAVAILABLE_SECONDS:
                    raise
                continue
            responded_at = time.monotonic()
            if answer.status_code != httpx.codes.NOT_MODIFIED:
                job = self._json(answer)
                headers["If-None-Match"] = answer.headers.get("ETag", "")
                yield job

    def picture(self, job: Job, number: int) -> bytes:
        """Fetch the bytes of one picture of a finished job."""
        return self._ask("GET", f"/jobs/{job['id']}/images/{number}").content

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"{self._http.base_url} does not respond ({type(error).__name__}); "
                "start the service with `imageprompt up`, or set its address with --url"
            ) from None
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and method == "GET":
            raise Unavailable(_reason(answer))
        if answer.is_error:
            raise ClientError(_reason(answer))
        return answer

    @staticmethod
    def _json(answer: httpx.Response) -> Job:
        try:
            content = answer.json()
        except ValueError:
            content = None
        if not isinstance(content, dict) or "status" not in content:
            raise ClientError(f"{answer.url} is not an imageprompt service")
        return content


class Unavailable(ClientError):
    """Raised when there is no service, or it is temporarily unavailable."""


def _reason(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
        return f"{problem['title']} ({problem['status']}): {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{answer.url} answered {answer.status_code}"
