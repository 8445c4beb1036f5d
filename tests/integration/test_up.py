"""`imageprompt up`: one command, one folder, no orphans."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.cli import processes
from tests.running import environment, until
from tests.stack import picture


class Up:
    """A running `imageprompt up`."""

    def __init__(self, folder: Path, settings: dict[str, object], *options: str) -> None:
        self.port = processes.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "up.log"
        self.process = processes.spawn(
            [
                *(sys.executable, "-m", "service.cli.main", "up"),
                *("--port", str(self.port), "--data", str(folder / "data")),
                *options,
            ],
            log=self.log,
            environment=environment(settings),
        )

    def wait(self) -> "Up":
        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return httpx.get(f"{self.url}/healthz/ready", timeout=30).is_success
            except httpx.HTTPError:
                return False

        until(ready, seconds=240)
        return self

    def children(self) -> list[int]:
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        return [int(pid) for pid in found.stdout.split()]


@pytest.fixture
def up(tmp_path, tiny_catalog):
    started = []

    def start(*options: str, **settings: object) -> Up:
        settings = {"models": tiny_catalog, "device": "cpu", **settings}
        started.append(Up(tmp_path, settings, *options))
        return started[-1].wait()

    yield start
    for one in started:
        processes.end(one.process, grace_seconds=60)


def test_no_two_processes_are_given_the_same_port() -> None:
    ports = [processes.free_port() for _ in range(200)]
    assert len(set(ports)) == 200


def alive(pids: list[int]) -> list[int]:
    """Those that run; who has ended may stay a zombie where process 1 collects none."""

    def runs(pid: int) -> bool:
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return status.rpartition(")")[2].split()[0] not in "ZX"

    return [pid for pid in pids if runs(pid)]


def generate(running: Up, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`imageprompt generate` against a running service."""
    (folder / "in.png").write_bytes(picture(3))
    command = [sys.executable, "-m", "service.cli.main", "generate", str(folder / "in.png")]
    out = ["-o", str(folder / "out.jpg"), "--url", running.url]
    return subprocess.run([*command, *out, *options], capture_output=True, text=True, check=False)


def test_one_command_runs_everything_and_leaves_nothing(up, tmp_path) -> None:
    first = up(worker_threads=1)
    children = first.children()
    assert len(children) == 3

    done = generate(first, tmp_path, "--seed", "4", "--json", str(tmp_path / "job.json"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.jpg").read_bytes()[:2] == b"\xff\xd8"
    wrong = generate(first, tmp_path, "--steps", "0")
    assert wrong.returncode == 1
    assert "steps" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1

    redis_url = (tmp_path / "data" / "redis.url").read_text()
    keys = [sys.executable, "-m", "service.cli.main", "keys", "list", "--redis", redis_url]
    subprocess.run(keys, check=True, capture_output=True)

    for pid in children[1:]:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(set(first.children()) - set(children)) == 2)
    children = first.children()
    assert processes.end(first.process, grace_seconds=60) == 0
    assert alive(children) == []

    second = up(worker_threads=1)
    job = json.loads((tmp_path / "job.json").read_text())
    found = httpx.get(f"{second.url}/jobs/{job['id']}", timeout=60).json()
    assert (found["status"], found["images"][0]["sha256"]) == (
        "succeeded",
        job["images"][0]["sha256"],
    )
    image = httpx.get(f"{second.url}/jobs/{job['id']}/images/0", timeout=60).content
    assert image == (tmp_path / "out.jpg").read_bytes()
    children = second.children()
    second.process.kill()
    until(lambda: not alive(children), what="the end of a killed parent's children")


@pytest.mark.parametrize(
    ("settings", "threads"), [({}, max(1, os.cpu_count() // 2)), ({"worker_threads": 7}, 7)]
)
def test_two_workers_share_the_cores_unless_a_setting_says_otherwise(up, settings, threads) -> None:
    workers = up("--workers", "2", **settings).children()[2:]
    assert len(workers) == 2
    for pid in workers:
        variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
        assert f"IMAGEPROMPT_WORKER_THREADS={threads}" in variables


def test_demo_leaves_pictures_and_their_jobs(tmp_path, tiny_catalog) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli.main", "demo", "--out", str(tmp_path / "out")],
        env=environment({"models": tiny_catalog, "device": "cpu", "worker_threads": 1}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "sheet.png" in names
    assert len([name for name in names if name.endswith(".png")]) == 9
    assert len([name for name in names if name.endswith(".json")]) == 8


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [("models", "missing.yaml", "missing.yaml"), ("worker_slots", "many", "WORKER_SLOTS")],
)
def test_a_wrong_setting_ends_it_at_once_and_is_named_in_one_line(
    tmp_path: Path, setting: str, value: str, named: str
) -> None:
    port = processes.free_port()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "service.cli.main", "up"),
            *("--port", str(port), "--data", str(tmp_path / "data")),
        ],
        env=environment({setting: value}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert named in line
    assert "Traceback" not in done.stdout + done.stderr
