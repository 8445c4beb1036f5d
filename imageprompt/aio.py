"""The asynchronous client; method for method as `Client`."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self

import httpx

from imageprompt import wire
from imageprompt.types import Event, Job
from imageprompt.wire import File, Value


class AsyncClient:
    """Sends jobs and fetches what comes of them. For one event loop.

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
        self._http = httpx.AsyncClient(**wire.connection(url, api_key, timeout_seconds))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def generate(
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
        return await self._submit(sent, wait_seconds=wait_seconds, idempotency_key=idempotency_key)

    async def run(
        self,
        image: File | str | Sequence[File | str] | None = None,
        *,
        timeout_seconds: float | None = None,
        **fields: Value,
    ) -> Job:
        """Submit a job and wait for its end. Raises `JobFailed` where it has no pictures.

        Raises `TimeoutError` after `timeout_seconds`; the job goes on then.
        """
        queued = await self._submit({"image": image, **fields})
        return wire.with_pictures(await self.wait(queued, timeout_seconds=timeout_seconds))

    async def wait(self, job: Job | str, *, timeout_seconds: float | None = None) -> Job:
        """Ask for a job until it has ended. Raises `TimeoutError` after `timeout_seconds`."""
        deadline = wire.Deadline(timeout_seconds)
        current = await self.job(job) if isinstance(job, str) else job
        while not current.is_final:
            deadline.check(current)
            answer = await self._send("GET", wire.job_path(current), headers=deadline.headers)
            current = wire.read_job(answer)
            if not (current.is_final or wire.was_held(answer)):
                await asyncio.sleep(wire.POLL_SECONDS)
        return current

    async def watch(self, job: Job) -> AsyncIterator[Job]:
        """The job, and again after each change of it until it has ended."""
        watch = wire.Watch()
        yield job
        while not job.is_final:
            await asyncio.sleep(wire.WATCH_SECONDS)
            answer = await self._send("GET", wire.job_path(job), headers=watch.headers)
            changed = watch.read(answer)
            if changed is not None:
                job = changed
                yield job

    async def job(self, job_id: str) -> Job:
        """A job as it stands."""
        return wire.read_job(await self._send("GET", wire.job_path(job_id)))

    async def jobs(self) -> AsyncIterator[Job]:
        """Your jobs, newest first; further pages are fetched as you go on."""
        path: str | None = "/jobs"
        while path is not None:
            page, path = wire.read_page(await self._send("GET", path))
            for job in page:
                yield job

    async def events(self, job: Job | str) -> AsyncIterator[Event]:
        """The events of a job until `done`; a lost connection is resumed."""
        path, reader = wire.job_path(job, "events"), wire.EventReader(self._http.base_url)
        while True:
            failure: Exception | None = None
            try:
                async with self._http.stream("GET", path, headers=reader.headers) as answer:
                    if not answer.is_success:
                        await answer.aread()
                    reader.begin(answer)
                    async for line in answer.aiter_lines():
                        for event in reader.feed(line):
                            yield event
                        if reader.is_over:
                            break
            except httpx.HTTPError as error:
                failure = error
            if reader.is_over:
                return
            await asyncio.sleep(reader.pause(failure))

    async def picture(self, job: Job, number: int = 0) -> bytes:
        """The bytes of one picture of a finished job."""
        return wire.checked(await self._send("GET", wire.job_path(job, f"images/{number}"))).content

    async def cancel(self, job: Job | str) -> Job:
        """End a job; one that has ended already stays as it is."""
        return wire.read_job(await self._send("POST", wire.job_path(job, "cancel")))

    async def delete(self, job: Job | str) -> None:
        """Delete a job with its uploads and pictures."""
        wire.checked(await self._send("DELETE", wire.job_path(job)))

    async def models(self) -> dict[str, Any]:
        """What `GET /models` answers: names, limits and defaults."""
        content: dict[str, Any] = wire.checked(await self._send("GET", "/models")).json()
        return content

    async def _submit(
        self,
        fields: Mapping[str, Value],
        *,
        wait_seconds: float | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        options = wire.generate_request(
            fields, wait_seconds=wait_seconds, idempotency_key=idempotency_key
        )
        return wire.read_job(await self._send("POST", "/generate", **options))

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request, again where that may help."""
        attempts = wire.Attempts(self._http.base_url)
        while True:
            try:
                answer = await self._http.request(method, path, **options)
            except httpx.HTTPError as error:
                seconds = attempts.again(error)
            else:
                if wire.is_answer(answer):
                    return answer
                seconds = attempts.again(answer)
            await asyncio.sleep(seconds)
