"""The API at rest is small. `python -m tests.service.test_footprint` prints the figures."""

import tempfile
import time
from pathlib import Path

import httpx

from tests.running import start_api

MAX_RESIDENT_MIB = 150


def measure() -> tuple[float, float]:
    """Seconds from the start of the process to its first answer, and MiB resident then."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        settings = {"redis_url": "redis://127.0.0.1:9/0", "storage_url": Path(folder).as_uri()}
        with start_api(settings, Path(folder) / "log") as running:
            running.wait("/healthz/live")
            seconds = time.monotonic() - started
            for path in ("/docs", "/openapi.json", "/metrics", "/models", "/healthz/ready"):
                httpx.get(running.url + path, timeout=30)
            status = Path(f"/proc/{running.process.pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return seconds, int(resident.split()[1]) / 1024


def test_the_api_at_rest_takes_at_most_150_mib() -> None:
    assert measure()[1] <= MAX_RESIDENT_MIB


if __name__ == "__main__":
    for _ in range(3):
        print("first answer after {:.2f} s, {:.0f} MiB resident".format(*measure()))  # noqa: T201
