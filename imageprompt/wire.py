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

from imageprompt.errors import ApiError, Unavailable
from imageprompt.types import Event, Job

File = Path | bytes | IO[bytes]
"""A picture: a path, its bytes, or an open binary file."""
Value = str | int | float | bool | None | File | Sequence[str | int | float] | Sequence[File]
"""A field of the form; `None` leaves it out, a sequence is a list or several files."""

MAX_ATTEMPTS: Final = 4
MAX_RETRY_SECONDS: Final = 20.0
RETRIED: Final = frozenset({408, 409, 429, 503})
"""Statuses after which the same request may succeed."""
POLL_SECONDS: Final = 0.5
"""Between two requests for a job, where the service does not hold its answers."""
HELD_SECONDS: Final = 20
"""So long a service may hold its answer until the job ends."""


def generate_request(
    fields: Mapping[str, Value], *, wait_seconds: float | None, idempotency_key: str | None
) -> dict[str, Any]:
    """Arguments of the HTTP request that submits a job.

    It always has an idempotency key, so that it can be sent again after a lost answer.
    """
    texts: dict[str, str] = {}
    files: list[tuple[str, tuple[str, bytes]]] = []
    for name, value in fields.items():
        if value is None:
            continue
        many: Sequence[Any] = value if _is_list(value) else [value]
        pictures = [part for part in many if isinstance(part, Path | bytes) or _is_open(part)]
        if pictures:
            files += [(name, _part(part, number)) for number, part in enumerate(pictures)]
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


def _is_open(value: object) -> bool:
    return hasattr(value, "read")


def _part(picture: Any, number: int) -> tuple[str, bytes]:
    if isinstance(picture, Path):
        return picture.name, picture.read_bytes()
    if isinstance(picture, bytes):
        return f"image-{number}", picture
    return Path(str(getattr(picture, "name", f"image-{number}"))).name, picture.read()


def retry_after(answer: httpx.Response | None, attempt: int) -> float | None:
    """Seconds to wait before the request is sent again; `None` where that would not help.

    `attempt` counts from 1; `answer` is `None` where there was none.
    """
    if attempt >= MAX_ATTEMPTS or (answer is not None and answer.status_code not in RETRIED):
        return None
    told = answer.headers.get("retry-after", "") if answer is not None else ""
    seconds = float(told) if told.isdigit() else 0.5 * 2.0 ** (attempt - 1)
    return seconds if seconds <= MAX_RETRY_SECONDS else None


def held_request(until: float | None) -> dict[str, str]:
    """Headers of a request for a job that is to be answered once it has ended.

    `until` is when the caller waits no longer, by `time.monotonic`.
    """
    left = HELD_SECONDS if until is None else until - time.monotonic()
    return {"Prefer": f"wait={min(HELD_SECONDS, max(1, math.ceil(left)))}"}


def was_held(answer: httpx.Response) -> bool:
    """Whether the service has held an answer, so that the next request may follow at once."""
    return "wait" in answer.headers.get("preference-applied", "")


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


def unreachable(url: httpx.URL, error: Exception) -> Unavailable:
    """The error of a service that does not answer."""
    return Unavailable(f"{url} does not answer ({type(error).__name__})")


def read_job(answer: httpx.Response) -> Job:
    """The job in an answer. Raises `ClientError` where the answer is no job."""
    try:
        return Job.from_json(checked(answer).json())
    except (ValueError, KeyError, TypeError):
        raise Unavailable(f"{answer.url} is not an imageprompt service") from None


class EventReader:
    """Parses server-sent events line by line (WHATWG HTML, 9.2.6)."""

    def __init__(self) -> None:
        self.last_id: str | None = None
        self._name = "message"
        self._data = io.StringIO()

    def feed(self, line: str) -> Iterator[Event]:
        """Take one line without its end; yields the event that an empty line completes."""
        if line:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                self._name = value
            elif field == "id":
                self.last_id = value
            elif field == "data":
                self._data.write(value)
            return
        text, self._data = self._data.getvalue(), io.StringIO()
        name, self._name = self._name, "message"
        if text:
            yield Event(name, json.loads(text), self.last_id)
