"""The synchronous client."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import httpx

from imageprompt import wire
from imageprompt.types import Event, Job
from imageprompt.wire import File, Value


class Client:
    """Sends jobs and fetches what comes of them. Safe to use from several threads.

    Every method raises `Unavailable` where the service does not answer after a few attempts, and
    `ApiError` where it refuses the request.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        *,
        timeout_seconds: float = 90.0,
    ) -> None:
        self._http = httpx.Client(**wire.connection(url, api_key, timeout_seconds))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(
        self,
        image: File | str | Sequence[File | str] | None = None,
        *,
        wait_seconds: float | None = None,
        idempotency_key: str | None = None,
        **fields: Value,
    ) -> Job:
        """Submit a job and return it, queued, or finished where it ended within `wait_seconds`.

        `fields` are those of `POST /generate` by their own names; files are paths, bytes, open
        files, or https URLs where the operator allows them.
        """
        sent = {"image": image, **fields}
        return self._submit(sent, wait_seconds=wait_seconds, idempotency_key=idempotency_key)

    def run(
        self,
        image: File | str | Sequence[File | str] | None = None,
        *,
        timeout_seconds: float | None = None,
        **fields: Value,
    ) -> Job:
        """Submit a job and wait for its end. Raises `JobFailed` where it has no pictures.

        Raises `TimeoutError` after `timeout_seconds`; the job goes on then.
        """
        queued = self._submit({"image": image, **fields})
        return wire.with_pictures(self.wait(queued, timeout_seconds=timeout_seconds))

    def wait(self, job: Job | str, *, timeout_seconds: float | None = None) -> Job:
        """Ask for a job until it has ended. Raises `TimeoutError` after `timeout_seconds`."""
        deadline = wire.Deadline(timeout_seconds)
        current = self.job(job) if isinstance(job, str) else job
        while not current.is_final:
            deadline.check(current)
            answer = self._send("GET", wire.job_path(current), headers=deadline.headers)
            current = wire.read_job(answer)
            if not (current.is_final or wire.was_held(answer)):
                time.sleep(wire.POLL_SECONDS)
        return current

    def watch(self, job: Job) -> Iterator[Job]:
        """The job, and again after each change of it until it has ended."""
        watch = wire.Watch()
        yield job
        while not job.is_final:
            time.sleep(wire.WATCH_SECONDS)
            answer = self._send("GET", wire.job_path(job), headers=watch.headers)
            changed = watch.read(answer)
            if changed is not None:
                job = changed
                yield job

    def job(self, job_id: str) -> Job:
        """A job as it stands."""
        return wire.read_job(self._send("GET", wire.job_path(job_id)))

    def jobs(self) -> Iterator[Job]:
        """Your jobs, newest first; further pages are fetched as you go on."""
        path: str | None = "/jobs"
        while path is not None:
            page, path = wire.read_page(self._send("GET", path))
            yield from page

    def events(self, job: Job | str) -> Iterator[Event]:
        """The events of a job until `done`; a lost connection is resumed."""
        path, reader = wire.job_path(job, "events"), wire.EventReader(self._http.base_url)
        while True:
            failure: Exception | None = None
            try:
                with self._http.stream("GET", path, headers=reader.headers) as answer:
                    if not answer.is_success:
                        answer.read()
                    reader.begin(answer)
                    for line in answer.iter_lines():
                        yield from reader.feed(line)
                        if reader.is_over:
                            break
            except httpx.HTTPError as error:
                failure = error
            if reader.is_over:
                return
            time.sleep(reader.pause(failure))

    def picture(self, job: Job, number: int = 0) -> bytes:
        """The bytes of one picture of a finished job."""
        return wire.checked(self._send("GET", wire.job_path(job, f"images/{number}"))).content

    def cancel(self, job: Job | str) -> Job:
        """End a job; one that has ended already stays as it is."""
        return wire.read_job(self._send("POST", wire.job_path(job, "cancel")))

    def delete(self, job: Job | str) -> None:
        """Delete a job with its uploads and pictures."""
        wire.checked(self._send("DELETE", wire.job_path(job)))

    def models(self) -> dict[str, Any]:
        """What `GET /models` answers: names, limits and defaults."""
        content: dict[str, Any] = wire.checked(self._send("GET", "/models")).json()
        return content

    def _submit(
        self,
        fields: Mapping[str, Value],
        *,
        wait_seconds: float | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        options = wire.generate_request(
            fields, wait_seconds=wait_seconds, idempotency_key=idempotency_key
        )
        return wire.read_job(self._send("POST", "/generate", **options))

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request, again where that may help."""
        attempts = wire.Attempts(self._http.base_url)
        while True:
            try:
                answer = self._http.request(method, path, **options)
            except httpx.HTTPError as error:
                seconds = attempts.again(error)
            else:
                if wire.is_answer(answer):
                    return answer
                seconds = attempts.again(answer)
            time.sleep(seconds)
