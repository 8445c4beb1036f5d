"""The API at rest is small and soon there. `python -m tests.service.test_footprint` prints it."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.running import start_api

MAX_RESIDENT_MIB = 150
MAX_OF_IMPORTS = 3.0
"""CPU time until it answers, in terms of that for the libraries alone."""
LIBRARIES = """
import time, fastapi, httpx, obstore, PIL.Image, prometheus_client, pydantic_settings, redis.asyncio
import rq, standardwebhooks, structlog, uvicorn, uvloop, yaml
print(time.process_time())
"""


@dataclass(frozen=True)
class Footprint:
    """Of one API process: what it took until its first answer, and what it holds after some."""

    seconds: float
    cpu_seconds: float
    resident_mib: float
    maps: str
    """Every file that is mapped into it."""


def measure() -> Footprint:
    """Start an API, ask it a few things and look at its process."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        settings = {"redis_url": "redis://127.0.0.1:9/0", "storage_url": Path(folder).as_uri()}
        with start_api(settings, Path(folder) / "log") as running:
            process = Path(f"/proc/{running.process.pid}")
            running.wait("/healthz/live")
            seconds = time.monotonic() - started
            ticks = process.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
            for path in ("/docs", "/openapi.json", "/metrics", "/models", "/healthz/ready"):
                httpx.get(running.url + path, timeout=30)
            status = process.joinpath("status").read_text()
            maps = process.joinpath("maps").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    cpu = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return Footprint(seconds, cpu, int(resident.split()[1]) / 1024, maps)


def imports_cpu_seconds() -> float:
    """CPU time for importing what the API is built on, in a process of its own."""
    command = [sys.executable, "-c", LIBRARIES]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_the_api_at_rest_takes_at_most_150_mib_and_holds_no_torch() -> None:
    found = measure()
    assert found.resident_mib <= MAX_RESIDENT_MIB
    for library in ("torch", "numpy", "tokenizers", "safetensors"):
        assert f"/{library}/" not in found.maps, library


def test_until_it_answers_it_does_little_but_import_its_libraries() -> None:
    """By CPU time, which other work on the machine changes for both alike; the second of each."""
    measure(), imports_cpu_seconds()
    assert measure().cpu_seconds < MAX_OF_IMPORTS * imports_cpu_seconds()


if __name__ == "__main__":
    for _ in range(3):
        one = measure()
        print(  # noqa: T201
            f"first answer after {one.seconds:.2f} s, {one.cpu_seconds:.2f} s of CPU "
            f"({imports_cpu_seconds():.2f} s for the libraries), {one.resident_mib:.0f} MiB"
        )
