"""A small HTTP client of the service, for the command line. Knows the contract, not the server."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import httpx

FINAL: Final = frozenset({"succeeded", "failed", "canceled", "expired"})
POLL_SECONDS: Final = 0.2
AWAY_SECONDS: Final = 60.0
"""How long a service that does not answer is asked again about a job it has accepted."""

Job = dict[str, Any]


class ClientError(Exception):
    """Raised when the service cannot be reached or says no; the message is for a person."""


class Client:
    """Sends jobs and fetches what comes of them."""

    def __init__(self, url: str, key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=60, follow_redirects=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._http.close()

    def submit(
        self, images: Sequence[Path], control: Path | None, fields: Mapping[str, object]
    ) -> Job:
        """Send one job. Raises `ClientError` with the service's reason where it is refused."""
        paths = [("image", path) for path in images]
        if control is not None:
            paths.append(("control_image", control))
        files = [(name, (path.name, path.read_bytes())) for name, path in paths]
        data = {name: str(value) for name, value in fields.items() if value is not None}
        return self._json(self._ask("POST", "/generate", files=files, data=data))

    def watch(self, job: Job) -> Iterator[Job]:
        """Yield the job as it goes on; the last one is final.

        Raises `ClientError` where the service stays away.
        """
        answered = time.monotonic()
        yield job
        while job["status"] not in FINAL:
            time.sleep(POLL_SECONDS)
            try:
                job = self._json(self._ask("GET", f"/jobs/{job['id']}"))
            except Unanswered:
                if time.monotonic() - answered > AWAY_SECONDS:
                    raise
                continue
            answered = time.monotonic()
            yield job

    def picture(self, job: Job, number: int) -> bytes:
        """Fetch the bytes of one picture of a finished job."""
        return self._ask("GET", f"/jobs/{job['id']}/images/{number}").content

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise Unanswered(
                f"{self._http.base_url} does not answer ({type(error).__name__}); "
                "start it with `imageprompt up`, or name another with --url"
            ) from None
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and method == "GET":
            raise Unanswered(_reason(answer))
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


class Unanswered(ClientError):
    """Raised when there is no service, or it is temporarily unavailable."""


def _reason(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
        return f"{problem['title']} ({problem['status']}): {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{answer.url} answered {answer.status_code}"
