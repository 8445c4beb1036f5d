"""The synchronous client."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import httpx

from imageprompt import wire
from imageprompt.errors import JobFailed
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
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout_seconds, follow_redirects=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(
        self,
        image: File | Sequence[File] | None = None,
        *,
        wait_seconds: float | None = None,
        idempotency_key: str | None = None,
        **fields: Value,
    ) -> Job:
        """Submit a job and return it, queued, or finished where it ended within `wait_seconds`.

        `fields` are those of `POST /generate` by their own names; files are paths, bytes or open
        files.
        """
        sent = {"image": image, **fields}
        return self._submit(sent, wait_seconds=wait_seconds, idempotency_key=idempotency_key)

    def run(
        self,
        image: File | Sequence[File] | None = None,
        *,
        timeout_seconds: float | None = None,
        **fields: Value,
    ) -> Job:
        """Submit a job and wait for its end. Raises `JobFailed` where it has no pictures.

        Raises `TimeoutError` after `timeout_seconds`; the job goes on then.
        """
        queued = self._submit({"image": image, **fields})
        job = self.wait(queued, timeout_seconds=timeout_seconds)
        if job.status != "succeeded":
            raise JobFailed(job)
        return job

    def wait(self, job: Job | str, *, timeout_seconds: float | None = None) -> Job:
        """Ask for a job until it has ended. Raises `TimeoutError` after `timeout_seconds`."""
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        current = self.job(job) if isinstance(job, str) else job
        while not current.is_final:
            if until is not None and time.monotonic() > until:
                raise TimeoutError(f"job {current.id} is {current.status}")
            answer = self._send("GET", f"/jobs/{current.id}", headers=wire.held_request(until))
            current = wire.read_job(answer)
            if not (current.is_final or wire.was_held(answer)):
                time.sleep(wire.POLL_SECONDS)
        return current

    def job(self, job_id: str) -> Job:
        """A job as it stands."""
        return wire.read_job(self._send("GET", f"/jobs/{job_id}"))

    def jobs(self) -> Iterator[Job]:
        """Your jobs, newest first; further pages are fetched as you go on."""
        page: str | None = "/jobs"
        while page is not None:
            content: Any = wire.checked(self._send("GET", page)).json()
            yield from (Job.from_json(one) for one in content["jobs"])
            page = content["next"]

    def events(self, job: Job | str) -> Iterator[Event]:
        """The events of a job until `done`; a lost connection is resumed."""
        path = f"/jobs/{job if isinstance(job, str) else job.id}/events"
        reader, attempt = wire.EventReader(), 1
        while True:
            headers = {"Last-Event-ID": reader.last_id} if reader.last_id else {}
            failure: Exception = ConnectionError("the stream ended before the job")
            try:
                with self._http.stream("GET", path, headers=headers) as answer:
                    if answer.status_code == httpx.codes.NO_CONTENT:
                        return
                    if not answer.is_success:
                        answer.read()
                    for line in wire.checked(answer).iter_lines():
                        for event in reader.feed(line):
                            attempt = 0
                            yield event
                            if event.name == "done":
                                return
            except httpx.HTTPError as error:
                failure = error
            attempt += 1
            seconds = wire.retry_after(None, attempt)
            if seconds is None:
                raise wire.unreachable(self._http.base_url, failure) from failure
            time.sleep(seconds)

    def picture(self, job: Job, number: int = 0) -> bytes:
        """The bytes of one picture of a finished job."""
        return wire.checked(self._send("GET", f"/jobs/{job.id}/images/{number}")).content

    def cancel(self, job: Job | str) -> Job:
        """End a job; one that has ended already stays as it is."""
        job_id = job if isinstance(job, str) else job.id
        return wire.read_job(self._send("POST", f"/jobs/{job_id}/cancel"))

    def delete(self, job: Job | str) -> None:
        """Delete a job with its uploads and pictures."""
        job_id = job if isinstance(job, str) else job.id
        wire.checked(self._send("DELETE", f"/jobs/{job_id}"))

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
        attempt = 1
        while True:
            answer = None
            try:
                answer = self._http.request(method, path, **options)
            except httpx.HTTPError as error:
                failure = wire.unreachable(self._http.base_url, error)
            if answer is not None and answer.is_success:
                return answer
            seconds = wire.retry_after(answer, attempt)
            if seconds is None:
                if answer is not None:
                    return wire.checked(answer)
                raise failure
            time.sleep(seconds)
            attempt += 1
