"""`python -m bench.http.attack`: what HTTP servers cost, and what floods do to them.

The same application behind `python -m service`, uvicorn as published (httptools, h11), hypercorn
and granian, each with 1,024 open files: requests a second, memory and an honest client's times
under attack. hypercorn and granian are found by PYTHONPATH, in a folder where they are installed
(`pip install --no-deps --target FOLDER hypercorn h2 hpack hyperframe priority wsproto granian
click`).
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import httpx

from bench.http import load, servers
from bench.http.__main__ import BOUNDARY, multipart, photograph
from service.cli import processes
from service.cli.processes import RedisServer

APP: Final = "bench.http.served:app"
MEBIBYTE: Final = 2**20
OPEN_FILES: Final = 1024


def commands(port: int) -> dict[str, list[str]]:
    """How each server is started on a port."""
    python = [sys.executable, "-m"]
    uvicorn = [*python, "uvicorn", APP, "--port", str(port), "--no-access-log"]
    uvicorn += ["--log-level", "critical", "--http"]
    return {
        "service": [*python, "service"],
        "uvicorn httptools": [*uvicorn, "httptools"],
        "uvicorn h11": [*uvicorn, "h11"],
        "hypercorn": [*python, "hypercorn", APP, "-b", f"127.0.0.1:{port}", "-k", "uvloop"],
        "granian": [
            *(*python, "granian", "--interface", "asgi", APP, "--port", str(port)),
            *("--loop", "uvloop", "--no-log"),
        ],
    }


@contextlib.contextmanager
def started(name: str, redis_url: str, folder: Path) -> Iterator[servers.Server]:
    """Run one server; it must answer within a minute."""
    port = processes.free_port()
    environment = os.environ | {
        "IMAGEPROMPT_REDIS_URL": redis_url,
        "IMAGEPROMPT_PORT": str(port),
        "IMAGEPROMPT_STORAGE_URL": (folder / "storage").as_uri(),
        "IMAGEPROMPT_MAX_QUEUED_JOBS": "1000000",
        "IMAGEPROMPT_LOG_LEVEL": "ERROR",
    }
    with (folder / "log").open("wb") as log:
        limited = ["bash", "-c", f'ulimit -n {OPEN_FILES}; exec "$@"', "bash"]
        process = subprocess.Popen(
            [*limited, *commands(port)[name]], env=environment, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/healthz/live", timeout=5).is_success:
                    break
            time.sleep(0.1)
        yield servers.Server(name, url, process.pid)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _family(int(child))
    return found


def memory_mib(pid: int, field: str) -> float:
    """`VmRSS` or `VmHWM` of a process and its children."""
    total = 0
    for member in _family(pid):
        status = Path(f"/proc/{member}/status").read_text()
        total += int(next(line for line in status.splitlines() if field in line).split()[1])
    return total / 1024


def forget_peak(pid: int) -> None:
    """Start a new peak of resident memory."""
    for member in _family(pid):
        Path(f"/proc/{member}/clear_refs").write_text("5")


def flood(server: servers.Server, pieces: Sequence[bytes], connections: int = 1) -> None:
    """Send each piece on so many connections, as far as the server reads, and wait a little."""
    port = int(server.url.rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(connections):
            with contextlib.suppress(OSError):
                connection = socket.create_connection(("127.0.0.1", port), timeout=5)
                stack.enter_context(connection)
                for piece in pieces:
                    connection.sendall(piece)
        time.sleep(2)


def attacks() -> dict[str, Callable[[servers.Server], None]]:
    """Name and deed of each."""
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    get = b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n"
    half = b"GET / HTTP/1.1\r\nHost: x\r\na: " + b"x" * 60_000
    trailers = b"a: b\r\n" * (MEBIBYTE // 6)
    pipelined = get * (MEBIBYTE // len(get))
    return {
        "40 MiB of trailers": lambda server: flood(server, [head, *[trailers] * 40]),
        "10 MiB of pipelined requests": lambda server: flood(server, [pipelined] * 10),
        "400 half heads of 60 kB": lambda server: flood(server, [half], 400),
        "1,100 silent connections": lambda server: flood(server, [], 1100),
    }


def honest(url: str, seconds: list[float], over: threading.Event) -> None:
    """Ask for the health ten times a second, on a new connection each; a failure counts 10 s."""
    while not over.is_set():
        began = time.perf_counter()
        try:
            httpx.get(f"{url}/healthz/live", timeout=10).raise_for_status()
            seconds.append(time.perf_counter() - began)
        except httpx.HTTPError:
            seconds.append(10.0)
        over.wait(0.1)


def under(server: servers.Server, attack: Callable[[servers.Server], None]) -> str:
    """Peak memory above the state before, and the worst time of an honest client."""
    before = memory_mib(server.pid, "VmRSS")
    forget_peak(server.pid)
    seconds: list[float] = []
    over = threading.Event()
    client = threading.Thread(target=honest, args=(server.url, seconds, over))
    client.start()
    attack(server)
    over.set()
    client.join()
    peak = memory_mib(server.pid, "VmHWM")
    return f"+{max(0.0, peak - before):.0f} MiB, {max(seconds):.2f} s"


def upgrade(server: servers.Server, body: bytes, kind: str) -> str:
    """What an upload with an offer of HTTP/2 is answered."""
    headers = {"Content-Type": kind, "Connection": "Upgrade, HTTP2-Settings"}
    headers |= {"Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAoAAAAAIAAAAA"}
    try:
        answer = httpx.post(f"{server.url}/generate", content=body, headers=headers, timeout=20)
    except httpx.HTTPError as error:
        return type(error).__name__
    return str(answer.status_code)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="of each kind of request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", nargs="*", default=list(commands(0)))
    parser.add_argument("--out", type=Path, default=Path("out/bench/http-attack.json"))
    options = parser.parse_args()
    body = multipart(photograph())
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    rates: dict[str, dict[str, list[float]]] = {}
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        redis = RedisServer(Path(name) / "redis")
        redis.start()
        stack.callback(redis.stop)
        running = []
        for wanted in options.servers:
            folder = Path(name) / wanted.replace(" ", "-")
            (folder / "storage").mkdir(parents=True)
            running.append(stack.enter_context(started(wanted, redis.url, folder)))
        for _ in range(options.rounds):
            for server in running:
                for what, message in {
                    "health": load.request("GET", f"{server.url}/healthz/live"),
                    "post 300 kB": load.request("POST", f"{server.url}/generate", body, kind),
                }.items():
                    before = server.cpu_seconds()
                    figures = load.run(
                        server.url, message, clients=8, lasts_seconds=options.seconds
                    )
                    spent = server.cpu_seconds() - before
                    per_core = len(figures.seconds) / spent if spent else 0.0
                    rates.setdefault(server.name, {}).setdefault(what, []).append(per_core)
        for server in running:
            row: dict[str, object] = {
                f"{what} a second and core": round(sorted(all_rates)[len(all_rates) // 2])
                for what, all_rates in rates[server.name].items()
            }
            row["resident MiB"] = round(memory_mib(server.pid, "VmRSS"))
            row["h2c upload"] = upgrade(server, body, kind)
            for what, attack in attacks().items():
                try:
                    row[what] = under(server, attack)
                except (OSError, StopIteration) as error:
                    row[what] = f"ended ({type(error).__name__})"
                    break
            results[server.name] = row
            print(server.name, json.dumps(row), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
