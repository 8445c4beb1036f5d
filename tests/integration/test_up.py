"""`imageprompt up`: one command, one folder, no orphans."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.cli import processes
from tests.running import environment, until
from tests.stack import FINAL, picture


class Up:
    """A running `imageprompt up`."""

    def __init__(self, folder: Path, catalog: Path) -> None:
        self.port = processes.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "up.log"
        self.process = processes.spawn(
            [
                *(sys.executable, "-m", "service.cli.main", "up"),
                *("--port", str(self.port), "--data", str(folder / "data")),
            ],
            log=self.log,
            environment=environment({"models": catalog, "device": "cpu", "worker_threads": 1}),
        )

    def wait(self) -> "Up":
        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return httpx.get(f"{self.url}/healthz/ready").is_success
            except httpx.HTTPError:
                return False

        until(ready, seconds=120)
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

    def start() -> Up:
        started.append(Up(tmp_path, tiny_catalog))
        return started[-1].wait()

    yield start
    for one in started:
        processes.end(one.process, grace_seconds=60)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_stop_leaves_no_process_and_a_restart_finds_the_finished_job(up) -> None:
    first = up()
    answer = httpx.post(f"{first.url}/generate", files={"image": picture(1)})
    job = f"/jobs/{answer.json()['id']}"
    until(lambda: httpx.get(first.url + job).json()["status"] in FINAL)
    image = httpx.get(f"{first.url}{job}/images/0").content
    children = first.children()
    assert len(children) == 3
    assert processes.end(first.process, grace_seconds=60) == 0
    assert alive(children) == []

    second = up()
    assert httpx.get(second.url + job).json()["status"] == "succeeded"
    assert httpx.get(f"{second.url}{job}/images/0").content == image
    children = second.children()
    second.process.kill()
    until(lambda: not alive(children), what="the end of a killed parent's children")


def test_crashed_child_is_started_again(up) -> None:
    running = up()
    before = running.children()
    for pid in before[1:]:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(set(running.children()) - set(before)) == 2)
    running.wait()
    answer = httpx.post(
        f"{running.url}/generate", files={"image": picture(1)}, headers={"Prefer": "wait=60"}
    )
    assert answer.json()["status"] == "succeeded"


def test_demo_leaves_pictures_and_their_jobs(tmp_path, tiny_catalog) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli.main", "demo", "--out", str(tmp_path / "out")],
        env=environment({"models": tiny_catalog, "device": "cpu", "worker_threads": 1}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "sheet.png" in names
    assert len([name for name in names if name.endswith(".png")]) == 5
    assert len([name for name in names if name.endswith(".json")]) == 4


def test_generate_saves_the_picture(up, tmp_path) -> None:
    running = up()
    (tmp_path / "in.png").write_bytes(picture(3))
    command = [sys.executable, "-m", "service.cli.main", "generate", str(tmp_path / "in.png")]
    options = ["-o", str(tmp_path / "out.jpg"), "--url", running.url, "--seed", "4"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.jpg").read_bytes()[:2] == b"\xff\xd8"
    wrong = subprocess.run(
        [*command, *options, "--steps", "0"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 1
    assert "steps" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1
