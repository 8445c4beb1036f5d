"""The images, built and run: `make test-images`. No part of `make test`, because it takes minutes.

API and CPU worker are built with buildah and run as their Deployments run them, beside a Redis and
an S3 server; a job goes through both, and SIGTERM ends both with status 0. Of the CUDA images only
the packages are resolved. Prints sizes, times and memory.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.cli import processes
from tests.buckets import KEYS, REGION, Bucket
from tests.deploy import manifests, pins
from tests.deploy.containers import Container, Engine, require_tools
from tests.deploy.test_dockerfiles import stages
from tests.running import until
from tests.stack import picture

STEPS = stages(manifests.ROOT / "docker" / "worker.Dockerfile")
NO_REGISTRY = re.compile(
    "from versions: none|Max retries|timed out|HTTP error 5|Connection (broken|aborted|reset)"
    "|IncompleteRead|RemoteDisconnected|Failed to fetch|error sending request"
)
"""What pip and uv say of it; a version that does not exist reads otherwise."""
API, WORKER = "localhost/imageprompt-api:test", "localhost/imageprompt-worker:test"


def told(text: str) -> None:
    """Print a figure."""
    print(text, flush=True)  # noqa: T201  figures are what this is for


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Both images, built."""
    require_tools()
    made = Engine(tmp_path_factory.mktemp("containers"))
    made.make_base()
    for dockerfile, tag, options in (
        ("docker/api.Dockerfile", API, []),
        ("docker/worker.Dockerfile", WORKER, ["--target=cpu"]),
    ):
        started = time.monotonic()
        made.build(dockerfile, tag, *options)
        seconds = time.monotonic() - started
        told(f"\n{tag}: {made.bytes_of(tag) / 1e6:.0f} MB above its base, built in {seconds:.0f} s")
    yield made
    made.remove()


def memory(name: str) -> str:
    """The memory limit of a Deployment's container, in podman's notation."""
    spec = dict(manifests.pod_specs(manifests.files()))[f"Deployment/{name}"]
    limit: str = spec["containers"][0]["resources"]["limits"]["memory"]
    return limit.replace("Gi", "g")


def ready(container: Container, url: str, what: str) -> float:
    """Seconds until a path answers 200."""
    started = time.monotonic()

    def answers() -> bool:
        assert container.state("Status") == "running", container.logs()
        try:
            return httpx.get(url, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    until(answers, what=what, seconds=300)
    return time.monotonic() - started


def test_the_images_do_a_job_and_end_with_sigterm(
    engine: Engine, redis_url: str, make_bucket: Callable[[], Bucket], tmp_path: Path
) -> None:
    bucket = make_bucket()
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o755)
    for name, text in {
        "imageprompt_redis_url": redis_url,
        "imageprompt_storage_access_key_id": KEYS["aws_access_key_id"],
        "imageprompt_storage_secret_access_key": KEYS["aws_secret_access_key"],
    }.items():
        (secrets / name).write_text(text)
    ports = {"api": processes.free_port(), "worker": processes.free_port()}
    environment = {
        "IMAGEPROMPT_SECRETS_DIR": "/run/secrets/imageprompt",
        "IMAGEPROMPT_MODELS": "/app/models/shapes.yaml",
        "IMAGEPROMPT_STORAGE_URL": bucket.url,
        "IMAGEPROMPT_STORAGE_ENDPOINT": bucket.endpoint,
        "IMAGEPROMPT_STORAGE_PUBLIC": "false",
        "IMAGEPROMPT_HOST": "127.0.0.1",
        "IMAGEPROMPT_PORT": str(ports["api"]),
        "IMAGEPROMPT_WORKER_METRICS_PORT": str(ports["worker"]),
        "IMAGEPROMPT_WORKER_THREADS": "1",
        "AWS_REGION": REGION,
    }
    url = f"http://127.0.0.1:{ports['api']}"
    api = engine.start(API, memory("api"), environment, secrets)
    told(f"\nAPI answers after {ready(api, url + '/healthz/live', 'the API'):.1f} s")
    worker = engine.start(WORKER, memory("worker"), environment, secrets)
    warm = ready(worker, f"http://127.0.0.1:{ports['worker']}/healthz/ready", "the worker")
    told(f"worker is warm after {warm:.1f} s")
    until(lambda: httpx.get(f"{url}/healthz/ready", timeout=10).is_success, what="readiness")
    answer = httpx.post(
        f"{url}/generate",
        files={"image": ("a.png", picture(), "image/png")},
        data={"steps": "4", "seed": "1"},
        headers={"Prefer": "wait=60", "Accept": "image/png"},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    assert answer.content.startswith(b"\x89PNG")
    told(f"a picture of {len(answer.content)} bytes, job {answer.headers['X-Job-Id']}")
    for name, container in (("API", api), ("worker", worker)):
        process = dict(container.status())
        assert process["Uid"].split() == ["10001"] * 4
        assert int(process["CapEff"], 16) == 0
        assert process["NoNewPrivs"] == "1"
        told(f"{name}: {int(process['VmHWM'].split()[0]) / 1000:.0f} MB of memory at most")
    assert worker.stop(90) == 0, worker.logs()
    assert api.stop(90) == 0, api.logs()


def resolved(file: str, python: str) -> dict[str, str]:
    """What pip would install from a file of pins in the image. Only metadata is fetched."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--no-python-downloads", "--no-header"]
    place = ["--no-annotate", "--python-version", python]
    platform = ["--python-platform", "x86_64-manylinux_2_39"]
    files = [str(pins.FOLDER / file), str(pins.FOLDER / "otel.txt")]
    done = subprocess.run(
        [*command, *place, *platform, *files],
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
    )
    if done.returncode != 0 and NO_REGISTRY.search(done.stderr):
        pytest.skip(f"no package registry can be reached: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return dict(line.split("==") for line in done.stdout.splitlines())


@pytest.mark.parametrize("stack", ["cuda", "cuda13"])
def test_a_cuda_worker_gets_exactly_its_pins(stack: str) -> None:
    """What resolves for the Python and the glibc of the image's base."""
    steps = " ".join(rest for _, rest in STEPS[f"{stack}-base"])
    python = re.search(r"python3=(\d\.\d+)\.", steps)
    assert python
    assert "ubuntu24.04" in steps, "glibc 2.39"
    wanted = pins.read(f"worker-{stack}.txt") | pins.read("otel.txt")
    assert resolved(f"worker-{stack}.txt", python[1]) == wanted
