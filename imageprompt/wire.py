"""How requests are built and answers read; shared by the sync and the async client."""

import io
import json
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, TypeGuard

import httpx

from imageprompt.errors import ApiError, JobFailed, Unavailable
from imageprompt.types import Event, Job

File = Path | bytes | IO[bytes]
"""A picture: a path, its bytes, or an open binary file."""
Value = str | int | float | bool | None | File | Sequence[str | int | float] | Sequence[File | str]
"""A field of the form; `None` leaves it out, a sequence is a list or several files.

A file may be named by its https URL, where the operator allows that.
"""

MAX_ATTEMPTS: Final = 4
MAX_RETRY_SECONDS: Final = 20.0
RETRIED: Final = frozenset({408, 409, 429, 503})
"""Statuses after which the same request may succeed."""
POLL_SECONDS: Final = 0.5
"""Between two requests for a job, where the service does not hold its answers."""
WATCH_SECONDS: Final = 0.2
"""Between two requests for a job that is watched, however fast it changes."""
HELD_SECONDS: Final = 20
"""So long a service may hold its answer until the job ends."""


def connection(url: str, api_key: str | None, timeout_seconds: float) -> dict[str, Any]:
    """Arguments of the HTTP client of a service."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {
        "base_url": url,
        "headers": headers,
        "timeout": timeout_seconds,
        "follow_redirects": True,
    }


def job_path(job: Job | str, part: str = "") -> str:
    """Path of a job, or of a part of it such as `events`."""
    path = f"/jobs/{job if isinstance(job, str) else job.id}"
    return f"{path}/{part}" if part else path


def generate_request(
    fields: Mapping[str, Value], *, wait_seconds: float | None, idempotency_key: str | None
) -> dict[str, Any]:
    """Arguments of the HTTP request that submits a job.

    It always has an idempotency key, so that it can be sent again after a lost answer.
    """
    texts: dict[str, str] = {}
    files: list[tuple[str, tuple[str | None, bytes]]] = []
    for name, value in fields.items():
        many: Sequence[Any] = value if _is_list(value) else [value]
        if value is None or not many:
            continue
        if any(_is_file(part) for part in many):
            files += [(name, _part(part, number)) for number, part in enumerate(many)]
        elif isinstance(value, bool):
            texts[name] = str(value).lower()
        else:
            texts[name] = ",".join(str(part) for part in many)
    headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    if wait_seconds is not None:
        headers["Prefer"] = f"wait={math.ceil(wait_seconds)}"
    return {"data": texts, "files": files, "headers": headers}


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_file(value: object) -> bool:
    """Whether a value is a file, an open one, or the URL of one."""
    if isinstance(value, str):
        return value.startswith(("https://", "http://"))
    return isinstance(value, Path | bytes) or hasattr(value, "read")


def _part(picture: Any, number: int) -> tuple[str | None, bytes]:
    if isinstance(picture, str):
        return None, picture.encode()
    if isinstance(picture, Path):
        return picture.name, picture.read_bytes()
    if isinstance(picture, bytes):
        return f"image-{number}", picture
    return Path(str(getattr(picture, "name", f"image-{number}"))).name, picture.read()


class Attempts:
    """Counts the attempts of one request."""

    def __init__(self, url: httpx.URL) -> None:
        self._url = url
        self._made = 0

    def again(self, failure: httpx.Response | Exception) -> float:
        """Seconds to wait before the request is sent again, after an attempt that failed.

        Raises `ApiError` or `Unavailable` where sending it again would not help.
        """
        self._made += 1
        answer = failure if isinstance(failure, httpx.Response) else None
        told = answer.headers.get("retry-after", "") if answer is not None else ""
        seconds = float(told) if told.isdigit() else 0.5 * 2.0 ** (self._made - 1)
        may_help = answer is None or answer.status_code in RETRIED
        if may_help and self._made < MAX_ATTEMPTS and seconds <= MAX_RETRY_SECONDS:
            return seconds
        if answer is not None:
            checked(answer)
        raise Unavailable(f"{self._url} does not answer ({type(failure).__name__})") from (
            failure if isinstance(failure, Exception) else None
        )

    def reset(self) -> None:
        """Count from the start again, after a success."""
        self._made = 0


def was_held(answer: httpx.Response) -> bool:
    """Whether the service has held an answer, so that the next request may follow at once."""
    return "wait" in answer.headers.get("preference-applied", "")


def is_answer(answer: httpx.Response) -> bool:
    """Whether a response is what was asked for: no error."""
    return answer.is_success or answer.status_code == httpx.codes.NOT_MODIFIED


def checked(answer: httpx.Response) -> httpx.Response:
    """The answer, where it is a success. Raises `ApiError` or `Unavailable`."""
    if answer.is_success:
        return answer
    try:
        problem = json.loads(answer.content)
    except ValueError:
        problem = {}
    error = ApiError(answer.status_code, problem if isinstance(problem, dict) else {})
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        raise Unavailable(str(error)) from error
    raise error


def read_job(answer: httpx.Response) -> Job:
    """The job in an answer. Raises `ClientError` where the answer is no job."""
    try:
        return Job.from_json(checked(answer).json())
    except (ValueError, KeyError, TypeError):
        raise Unavailable(f"{answer.url} is not an imageprompt service") from None


def read_page(answer: httpx.Response) -> tuple[list[Job], str | None]:
    """A page of jobs, and the URL of the next one."""
    content: Any = checked(answer).json()
    return [Job.from_json(one) for one in content["jobs"]], content["next"]


def with_pictures(job: Job) -> Job:
    """The job. Raises `JobFailed` where it ended without pictures."""
    if job.status != "succeeded":
        raise JobFailed(job)
    return job


class Deadline:
    """How long a job is waited for; without seconds, for ever."""

    def __init__(self, seconds: float | None) -> None:
        self._at = math.inf if seconds is None else time.monotonic() + seconds

    @property
    def headers(self) -> dict[str, str]:
        """Those of a request for a job that is to be answered once it has ended."""
        left = self._at - time.monotonic()
        return {"Prefer": f"wait={math.ceil(min(HELD_SECONDS, max(1, left)))}"}

    def check(self, job: Job) -> None:
        """Raise `TimeoutError` where the time is up."""
        if time.monotonic() > self._at:
            raise TimeoutError(f"job {job.id} is {job.status}")


class Watch:
    """Asks for a job that is to be answered once it is another one than that seen last."""

    def __init__(self) -> None:
        self.headers = {"Prefer": f"wait={HELD_SECONDS}"}

    def read(self, answer: httpx.Response) -> Job | None:
        """The job, where it has changed."""
        if answer.status_code == httpx.codes.NOT_MODIFIED:
            return None
        self.headers["If-None-Match"] = answer.headers.get("etag", "")
        return read_job(answer)


class EventReader:
    """Parses server-sent events (WHATWG HTML, 9.2.6) of a job, over as many connections as needed.

    It resumes after the last event of a connection that was lost.
    """

    def __init__(self, url: httpx.URL) -> None:
        self._attempts = Attempts(url)
        self._last_id: str | None = None
        self._name = "message"
        self._data = io.StringIO()
        self.is_over = False
        """Whether no event will come any more."""

    @property
    def headers(self) -> dict[str, str]:
        """Those of the next connection's request."""
        return {"Last-Event-ID": self._last_id} if self._last_id else {}

    def begin(self, answer: httpx.Response) -> None:
        """Look at the status of a connection's response. Raises `ApiError` or `Unavailable`."""
        self.is_over = checked(answer).status_code == httpx.codes.NO_CONTENT
        self._name, self._data = "message", io.StringIO()

    def pause(self, error: Exception | None) -> float:
        """Seconds until the next connection, after one that ended too early.

        Raises `Unavailable` after a few attempts without an event.
        """
        return self._attempts.again(error or ConnectionError("the stream ended before the job"))

    def feed(self, line: str) -> Iterator[Event]:
        """Take one line without its end; yields the event that an empty line completes."""
        if line:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                self._name = value
            elif field == "id":
                self._last_id = value
            elif field == "data":
                self._data.write(value)
            return
        text, self._data = self._data.getvalue(), io.StringIO()
        name, self._name = self._name, "message"
        if text:
            self._attempts.reset()
            self.is_over = name == "done"
            yield Event(name, json.loads(text), self._last_id)
