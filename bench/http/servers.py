"""Starts the three servers, each with a model that does nothing, and counts their CPU time.

cog and LitServe run in virtual environments of their own, made on first use: they are measured,
not depended on.
"""

import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from service.cli import processes
from service.cli.processes import RedisServer

ROOT: Final = Path(__file__).resolve().parents[2]
TICKS: Final = os.sysconf("SC_CLK_TCK")

LITSERVE: Final = """
import sys
import litserve

class Nothing(litserve.LitAPI):
    def setup(self, device):
        pass
    def decode_request(self, request):
        return len(request["image"].file.read())
    def predict(self, size):
        return size
    def encode_response(self, output):
        return {"output": output}

if __name__ == "__main__":
    server = litserve.LitServer(Nothing(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1,
               generate_client_file=False, log_level="warning")
"""

COG: Final = """
from cog import BasePredictor, Path

class Predictor(BasePredictor):
    def predict(self, image: Path) -> int:
        return len(image.read_bytes())
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its URL, and the processes whose CPU time is its own."""

    name: str
    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """CPU time of the process and all that it started, so far."""
        return sum(_cpu_seconds(pid) for pid in _family(self.pid))


@contextmanager
def on_core(cores: set[int]) -> Iterator[None]:
    """What is started within the context runs on these cores, and all that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _family(int(child))


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def ours(folder: Path) -> Iterator[tuple[Server, Server]]:
    """Run the API and its Redis; no worker, so jobs are taken in and wait."""
    redis = RedisServer(folder / "redis")
    redis.start()
    port = processes.free_port()
    environment = {
        "IMAGEPROMPT_REDIS_URL": redis.url,
        "IMAGEPROMPT_PORT": str(port),
        "IMAGEPROMPT_STORAGE_URL": (folder / "storage").as_uri(),
        "IMAGEPROMPT_MAX_QUEUED_JOBS": "1000000",
        "IMAGEPROMPT_LOG_LEVEL": "WARNING",
    }
    command = [sys.executable, "-m", "service"]
    try:
        with _started(
            "imageprompt",
            command,
            port=port,
            path="/healthz/live",
            folder=folder,
            environment=environment,
        ) as api:
            yield api, Server("redis", redis.url, redis.process.pid)
    finally:
        redis.stop()


@contextmanager
def cog(folder: Path) -> Iterator[Server]:
    """Run cog 0.23.1: its Rust server around a Python predictor."""
    python = _environment("cog", "cog==0.23.1")
    folder.mkdir(parents=True)
    (folder / "predict.py").write_text(COG, encoding="utf-8")
    port = processes.free_port()
    environment = {"COG_PREDICT_TYPE_STUB": "predict.py:Predictor", "PORT": str(port)}
    command = [str(python), "-m", "cog.server.http", "--host", "127.0.0.1"]
    with _started(
        "cog",
        command,
        port=port,
        path="/health-check",
        folder=folder,
        environment=environment,
        wants='"READY"',
    ) as server:
        yield server


@contextmanager
def litserve(folder: Path) -> Iterator[Server]:
    """Run LitServe 0.2.19: FastAPI and one worker process."""
    python = _environment("litserve", "litserve==0.2.19", "python-multipart==0.0.34")
    folder.mkdir(parents=True)
    (folder / "serve.py").write_text(LITSERVE, encoding="utf-8")
    port = processes.free_port()
    command = [str(python), "serve.py", str(port)]
    with _started(
        "litserve", command, port=port, path="/health", folder=folder, environment={}
    ) as server:
        yield server


def _environment(name: str, *requirements: str) -> Path:
    """The Python of a virtual environment that holds `requirements`."""
    target = ROOT / "out" / "bench" / "peers" / name
    python = target / "bin" / "python"
    if not (target / ".ready").exists():
        venv.create(target, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        (target / ".ready").touch()
    return python


@contextmanager
def _started(
    name: str,
    command: list[str],
    *,
    port: int,
    path: str,
    folder: Path,
    environment: dict[str, str],
    wants: str = "",
) -> Iterator[Server]:
    inherited = {key: os.environ[key] for key in ("HOME", "LANG") if key in os.environ}
    search = f"{Path(command[0]).parent}:{os.environ['PATH']}"
    here = Path.cwd()
    os.chdir(folder if name != "imageprompt" else ROOT)
    try:
        process = processes.spawn(
            command,
            log=folder / f"{name}.log",
            environment=inherited | {"PATH": search} | environment,
        )
    finally:
        os.chdir(here)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: wants in httpx.get(url + path).raise_for_status().text, process, name)
        yield Server(name, url, process.pid)
    finally:
        processes.end(process, grace_seconds=15)
        with suppress(ProcessLookupError):  # LitServe leaves its own children behind
            os.killpg(process.pid, signal.SIGKILL)


def _wait(answers: Callable[[], bool], process: "subprocess.Popen[bytes]", name: str) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended while it started")
        try:
            if answers():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{name} did not answer within a minute")
