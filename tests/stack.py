"""One running service in a test's hands: an API, its workers, and what a client would ask."""

import io
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tests.running import KEEP, Running, redis_client, start_api, start_worker, until

FINAL = {"succeeded", "failed", "canceled", "expired"}


def picture(hue: int = 0, size: tuple[int, int] = (40, 40)) -> bytes:
    """A PNG whose every pixel depends on `hue`."""
    image = Image.new("HSV", size)
    image.putdata(
        [((hue + x) % 256, 200, 55 + (7 * y) % 200) for y in range(size[1]) for x in range(size[0])]
    )
    out = io.BytesIO()
    image.convert("RGB").save(out, "PNG")
    return out.getvalue()


@dataclass
class Service:
    """One API and its workers, started and stopped by the test."""

    settings: dict[str, object]
    folder: Path
    stack: ExitStack = field(default_factory=ExitStack)
    workers: list[Running] = field(default_factory=list)
    api: Running = field(init=False)
    client: httpx.Client = field(init=False)

    def start(self, workers: int = 1, **options: Any) -> "Service":
        """Start the API and `workers` workers, and wait until jobs would be worked on."""
        self.start_api()
        for _ in range(workers):
            self.add_worker(wait=False, **options)
        self.wait_ready()
        return self

    def start_api(self) -> None:
        """Start (again) the API."""
        self.api = self.stack.enter_context(start_api(self.settings, self.folder / "api.log"))
        client = httpx.Client(base_url=self.api.url, timeout=180, limits=KEEP)
        self.client = self.stack.enter_context(client)
        self.api.wait("/healthz/live")

    def add_worker(self, *, wait: bool = True, **options: Any) -> Running:
        """Start one more worker."""
        log = self.folder / f"worker-{len(self.workers)}.log"
        worker = self.stack.enter_context(start_worker(self.settings, log, **options))
        self.workers.append(worker)
        if wait:
            worker.wait("/healthz/ready")
        return worker

    def wait_ready(self) -> None:
        """Wait until every worker and the API are ready."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.wait("/healthz/ready")
        self.api.wait("/healthz/ready")

    def post(
        self,
        image: bytes | None = None,
        control: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: object,
    ) -> httpx.Response:
        """POST /generate."""
        files = [("image", ("a.png", picture() if image is None else image, "image/png"))]
        if control is not None:
            files.append(("control_image", ("c.png", control, "image/png")))
        data = {name: str(value) for name, value in fields.items()}
        return self.client.post("/generate", files=files, data=data, headers=headers)

    def submit(self, **options: Any) -> str:
        """The id of a new job."""
        answer = self.post(**options)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as a client sees it."""
        answer = self.client.get(f"/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def finished(self, job_id: str, seconds: float = 180) -> dict[str, Any]:
        """The job once it is final."""
        return until(
            lambda: (job := self.job(job_id))["status"] in FINAL and job,
            seconds=seconds,
            what=f"the end of job {job_id}",
        )

    def succeeded(self, job_id: str, seconds: float = 180) -> dict[str, Any]:
        """The job once it has succeeded; fails where it ends in any other way."""
        job = self.finished(job_id, seconds)
        assert job["status"] == "succeeded", job["error"]
        return job

    def image(self, job_id: str, number: int = 0) -> bytes:
        """The bytes of a picture."""
        answer = self.client.get(f"/jobs/{job_id}/images/{number}", follow_redirects=True)
        assert answer.status_code == 200, answer.text
        return answer.content

    def wait_step(self, job_id: str, step: int = 1) -> None:
        """Wait until a job has made some steps."""
        until(lambda: self.job(job_id)["progress"]["step"] >= step, what=f"step {step}")

    def stop(self) -> None:
        """End every process."""
        self.stack.close()


def pixels(data: bytes) -> bytes:
    """The decoded pixels of a picture."""
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def metric(running: Running, name: str) -> float:
    """Sum of a metric's samples as the process exposes it."""
    lines = httpx.get(f"{running.url}/metrics", timeout=60).text.splitlines()
    found = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def nothing_left(service: Service) -> bool:
    """Whether Redis holds no waiting, dequeued or leased job."""
    with redis_client(str(service.settings["redis_url"])) as redis:
        queue = "rq:queue:imageprompt"
        waiting = redis.llen(queue) + redis.llen(f"{queue}:intermediate")
        return not waiting and not redis.zcard("rq:wip:imageprompt")
