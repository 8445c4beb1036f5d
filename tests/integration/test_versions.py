"""The previous release's API and worker beside this one's, on the same Redis and storage."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests import previous_release
from tests.running import Running, start_api, start_worker, until
from tests.stack import FINAL, Service, picture

PARAMETERS = {
    "prompt": "a star",
    "negative_prompt": "blue",
    "control_scale": 0.5,
    "ip_scale": 0.7,
    "steps": 3,
    "seed": 9,
    "num_images": 2,
    "output_format": "webp",
}


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the previous release."""
    folder = tmp_path_factory.mktemp("previous")
    try:
        previous_release.extract(folder)
    except previous_release.Unavailable as error:
        pytest.skip(str(error))
    return folder


@dataclass
class Versions:
    """This release's service, and how to run the previous one's processes beside it."""

    service: Service
    previous: Path
    old_api: Running

    def worker(self, *, old: bool) -> Running:
        """A ready worker of either version."""
        name = "old" if old else "new"
        settings, command = self.service.settings, ["-m", "workers"]
        if old:
            settings = settings | {"PYTHONPATH": self.previous}
            command = previous_release.WORKER
        log = self.service.folder / f"{name}-worker.log"
        return start_worker(settings, log, command=command).wait("/healthz/ready")


@pytest.fixture(scope="module")
def versions(make_service: Callable[..., Service], previous: Path) -> Iterator[Versions]:
    """An API of each version."""
    service = make_service(lease_seconds=4)
    service.start_api()
    settings = service.settings | {"PYTHONPATH": previous}
    api = service.stack.enter_context(
        start_api(settings, service.folder / "old-api.log", command=previous_release.API)
    )
    api.wait("/healthz/live")
    yield Versions(service, previous, api)
    service.stop()


@pytest.mark.parametrize("old_worker", [True, False], ids=["old worker", "new worker"])
def test_either_api_and_either_worker_serve_each_other(
    versions: Versions, *, old_worker: bool
) -> None:
    """A job of the parameters that both releases have is run, shown, listed and deleted by both."""
    urls = {"new": versions.service.api.url, "old": versions.old_api.url}
    with versions.worker(old=old_worker), httpx.Client(timeout=60) as client:
        for posted in urls.values():
            files = [
                ("image", ("a.png", picture(5), "image/png")),
                ("image", ("b.png", picture(90), "image/png")),
                ("control_image", ("c.png", picture(9), "image/png")),
            ]
            fields = {name: str(value) for name, value in PARAMETERS.items()}
            answer = client.post(f"{posted}/generate", files=files, data=fields)
            assert answer.status_code == 202, answer.text
            job_id = answer.json()["id"]
            for url in urls.values():
                link = f"{url}/jobs/{job_id}"
                job = until(lambda link=link: finished(client, link))
                assert job["status"] == "succeeded", job["error"]
                for name, value in PARAMETERS.items():
                    assert job["input"][name] == value
                assert [len(job["input"]["image"]), len(job["images"])] == [2, 2]
                listed = client.get(f"{url}/jobs").json()["jobs"]
                assert job_id in {one["id"] for one in listed}
                assert client.get(f"{url}/metrics").status_code == 200
                image = client.get(f"{url}/jobs/{job_id}/images/1", follow_redirects=True)
                assert image.headers["content-type"] == "image/webp"
            other = next(url for url in urls.values() if url != posted)
            assert client.delete(f"{other}/jobs/{job_id}").status_code == 204
            # The previous release leaves the tombstone of a job that it deletes.
            gone = {404, 410} if other == urls["old"] else {404}
            assert client.get(f"{posted}/jobs/{job_id}").status_code in gone


def finished(client: httpx.Client, url: str) -> dict[str, object] | None:
    """The job once it is final."""
    answer = client.get(url)
    assert answer.status_code == 200, answer.text
    job: dict[str, object] = answer.json()
    return job if job["status"] in FINAL else None
