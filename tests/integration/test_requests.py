"""From the client's upload to the finished picture, through real processes."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from service.core.picture_metadata import read_recipe
from service.core.settings import ROOT
from tests.running import redis_client, until
from tests.stack import Service, metric, picture, pixels


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_image_prompt_alone_gives_a_picture_that_tells_how_it_was_made(service: Service) -> None:
    job = service.succeeded(service.submit(image=picture(1), seed=5))
    image = opened(service.image(job["id"]))
    assert image.size == (64, 64)
    found = read_recipe(image)
    asked = job["input"]
    assert found["image"][0]["sha256"] == asked["image"][0]["sha256"]
    for name in ("seed", "steps", "scheduler", "guidance_scale", "ip_scale", "model", "width"):
        assert found[name] == asked[name]


def test_text_changes_the_picture(service: Service) -> None:
    plain, told = (
        service.submit(image=picture(2), seed=5, ip_scale=0.5, **extra)
        for extra in ({}, {"prompt": "a red star"})
    )
    ends = [pixels(service.image(service.succeeded(job)["id"])) for job in (plain, told)]
    assert ends[0] != ends[1]


def test_control_map_changes_the_picture(service: Service) -> None:
    free = service.submit(image=picture(3), seed=5)
    bound = service.submit(image=picture(3), seed=5, control=picture(9, (64, 64)))
    ends = [pixels(service.image(service.succeeded(job)["id"])) for job in (free, bound)]
    assert ends[0] != ends[1]
    assert service.job(bound)["input"]["control_type"] == "outline"


def test_image_seen_before_is_not_encoded_again(service: Service) -> None:
    first = service.succeeded(service.submit(image=picture(4), seed=1))
    runs = metric(service.workers[0], "imageprompt_encoder_runs_total")
    again = service.succeeded(service.submit(image=picture(4), seed=2))
    assert first["metrics"]["image_embedding_cache"] == "miss"
    assert again["metrics"]["image_embedding_cache"] == "hit"
    assert metric(service.workers[0], "imageprompt_encoder_runs_total") == runs
    assert metric(service.workers[0], "imageprompt_embedding_cache_total") > 0


def test_formats_and_counts_are_as_asked(service: Service) -> None:
    for kind in ("jpeg", "webp"):
        job = service.succeeded(service.submit(output_format=kind, num_images=2, seed=8))
        assert [image["seed"] for image in job["images"]] == [8, 9]
        images = [opened(service.image(job["id"], number)) for number in (0, 1)]
        assert {image.format for image in images} == {kind.upper()}
        assert [read_recipe(image)["seed"] for image in images] == [8, 9]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_picture_is_made_again_from_what_it_says(
    service: Service, tmp_path: Path, kind: str
) -> None:
    """The same bytes, from the file alone and the uploads in any order."""
    files = {"a.png": picture(6), "b.png": picture(7), "map.png": picture(9, (64, 64))}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    answer = service.client.post(
        "/generate",
        files=[
            ("image", ("a", files["a.png"])),
            ("image", ("b", files["b.png"])),
            ("control_image", ("c", files["map.png"])),
        ],
        data={
            "deterministic": "true",
            "prompt": "a red star \N{ROCKET}",
            "image_weights": "1,0.3",
            "control_scale": "0.7",
            "steps": "3",
            "num_images": "2",
            "output_format": kind,
        },
    )
    job = service.succeeded(answer.json()["id"])
    made = tmp_path / f"made.{kind}"
    made.write_bytes(service.image(job["id"], 1))
    target = tmp_path / f"again.{kind}"
    command = [sys.executable, "-m", "service.cli.main", "again", str(made)]
    command += [str(tmp_path / name) for name in ("map.png", "b.png", "a.png")]
    command += ["--out", str(target), "--url", service.api.url]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "the same bytes" in run.stderr
    assert target.read_bytes() == made.read_bytes()


def test_picture_can_be_had_in_one_request(service: Service) -> None:
    headers = {"Prefer": "wait=60", "Accept": "image/png"}
    answer = service.post(image=picture(5), headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert opened(answer.content).size == (64, 64)


def test_every_step_is_told(service: Service) -> None:
    job_id = service.submit(steps=6)
    with service.client.stream("GET", f"/jobs/{job_id}/events") as stream:
        lines = [line for line in stream.iter_lines() if line.startswith(("event:", "data:"))]
    events = list(zip(lines[::2], lines[1::2], strict=True))
    steps = [data for event, data in events if "progress" in event]
    assert steps
    assert '"step": 6' in steps[-1] or '"step":6' in steps[-1].replace(" ", "")
    assert "done" in events[-1][0]


def test_running_job_can_be_canceled(service: Service) -> None:
    job_id = service.submit(steps=100, width=256, height=256, num_images=4)
    service.wait_step(job_id)
    assert service.client.post(f"/jobs/{job_id}/cancel").json()["status"] == "canceled"
    worker = service.workers[0]
    until(lambda: metric(worker, "imageprompt_worker_running_jobs") == 0)
    job = service.job(job_id)
    assert (job["status"], job["images"]) == ("canceled", [])


def test_hundred_jobs_at_once_each_get_their_own_picture(service: Service) -> None:
    """Eight clients, one hundred requests; every answer is compared with a lone run of it."""
    requests = [{"image": picture(7 * n), "seed": 1000 + n, "steps": 2 + n % 3} for n in range(100)]

    def send(fields: dict[str, object]) -> str:
        return service.submit(**fields)

    with ThreadPoolExecutor(8) as clients:
        ids = list(clients.map(send, requests))
        jobs = list(clients.map(service.succeeded, ids))
    assert max(job["metrics"]["max_batch"] for job in jobs) > 2
    together = [opened(service.image(job_id)) for job_id in ids]
    for image, fields in zip(together, requests, strict=True):
        assert read_recipe(image)["seed"] == fields["seed"]
    for n in range(0, 100, 9):
        alone = service.succeeded(service.submit(**requests[n]))
        lone = opened(service.image(alone["id"]))
        difference = max(
            abs(a - b) for a, b in zip(lone.tobytes(), together[n].tobytes(), strict=True)
        )
        assert difference <= 1, f"request {n} differs by {difference} of 255"
    assert len({image.tobytes() for image in together}) == 100


def test_worker_tells_its_figures(service: Service) -> None:
    text = httpx.get(f"{service.workers[0].url}/metrics", timeout=60).text
    for name in ("imageprompt_jobs_total", "imageprompt_stage_seconds_bucket"):
        assert name in text


def test_planted_job_is_refused_while_honest_ones_run(service: Service, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    data = f'["os.system", null, ["touch {trap}"], {{}}]'
    with redis_client(str(service.settings["redis_url"])) as redis:
        planted = {"data": data, "status": "queued", "origin": "imageprompt"}
        redis.hset("rq:job:planted", mapping=planted)
        redis.rpush("rq:queue:imageprompt", "planted")
        service.succeeded(service.submit())
        until(lambda: not redis.exists("rq:job:planted"))
    assert not trap.exists()
