"""Several API processes on one port."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.running import Running, environment, until


@pytest.fixture(scope="module")
def settings(
    fresh_redis_url: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """Of two processes that share a port."""
    folder = tmp_path_factory.mktemp("storage")
    return {"redis_url": fresh_redis_url(), "storage_url": folder.as_uri(), "api_processes": 2}


@pytest.fixture(scope="module")
def several(make_api: Callable[..., Running], settings: dict[str, object]) -> Iterator[Running]:
    """The two."""
    with make_api(**settings) as running:
        yield running


def counted(running: Running) -> float:
    """The requests for /models that one of the processes tells of."""
    name = 'imageprompt_http_requests_total{method="GET",route="/models",status="2xx"} '
    lines = httpx.get(f"{running.url}/metrics").text.splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def pids(running: Running) -> list[int]:
    """The processes that serve."""
    found = subprocess.run(
        ["pgrep", "-P", str(running.process.pid)], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


def test_metrics_are_those_of_all_processes(several: Running) -> None:
    before = counted(several)
    for _ in range(20):  # each on a connection of its own, so that both processes get some
        assert httpx.get(f"{several.url}/models").status_code == 200
    assert [counted(several) for _ in range(10)] == [before + 20] * 10
    text = httpx.get(f"{several.url}/metrics").text
    for name in ("process_cpu_seconds_total", "imageprompt_queue_jobs", "imageprompt_build_info"):
        assert sum(line.startswith(name) for line in text.splitlines()) == 1, name


def test_a_process_that_is_killed_is_replaced_and_its_counts_stay(several: Running) -> None:
    httpx.get(f"{several.url}/models")
    before, (killed, _) = counted(several), pids(several)
    subprocess.run(["kill", "-9", str(killed)], check=True)
    until(lambda: len(pids(several)) == 2 and killed not in pids(several), what="another process")
    assert counted(several) >= before


def test_a_port_that_is_taken_is_said_once(several: Running, settings: dict[str, object]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "service"],
        env=environment(settings | {"port": several.port}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.count("is in use") == 1


def test_sigterm_ends_all_of_them(several: Running) -> None:
    served = pids(several)
    several.process.send_signal(signal.SIGTERM)
    assert several.process.wait(60) == 0
    assert not [pid for pid in served if _is_alive(pid)]


def _is_alive(pid: int) -> bool:
    return (
        subprocess.run(["kill", "-0", str(pid)], capture_output=True, check=False).returncode == 0
    )
