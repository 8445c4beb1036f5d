"""Real processes for tests: `python -m service` and `python -m workers` with given settings.

Fixtures in conftest.py hand these out; each process dies with the test run.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self, TypeVar

import httpx
from redis import Redis

from service.cli import processes
from service.core.settings import ROOT
from tests.forked import Forked

R = TypeVar("R")
START_SECONDS = 240.0
KEEP = httpx.Limits(keepalive_expiry=2)
"""For clients that keep connections: the API closes idle ones after 5 s, httpx' own limit, and a
request that is sent at that very moment is lost."""


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """This process's environment plus `settings`; a lower-case name is one of our settings.

    `{"redis_url": u}` becomes `IMAGEPROMPT_REDIS_URL=u`; other names stay (AWS_ACCESS_KEY_ID).
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith("IMAGEPROMPT_")}
    ours = {
        (f"IMAGEPROMPT_{name.upper()}" if name.islower() else name): str(value)
        for name, value in settings.items()
    }
    return clean | ours


def until(
    answer: Callable[[], R | None],
    *,
    seconds: float = 180,
    what: str | Callable[[], str] = "what the test waits for",
) -> R:
    """Call `answer` until it is truthy and return that.

    Fails after `seconds`, saying `what` did not happen; a callable `what` is asked then.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = answer()
        if found:
            return found
        if time.monotonic() > deadline:
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"{told} did not happen within {seconds} s")
        time.sleep(0.05)


def connects(address: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection((address, port), timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True


class Running(AbstractContextManager["Running"]):
    """One started process, its log file and, as soon as it serves, its URL."""

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        settings: Mapping[str, object],
        log: Path,
        grace: float,
        *,
        forked: bool = False,
    ) -> None:
        """Start Python with the arguments `command`."""
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self._grace = grace
        self.process: subprocess.Popen[bytes] | Forked
        if forked and command[0] == "-m":
            self.process = Forked(command[1:], environment(settings), log)
        else:
            self.process = processes.spawn(
                [sys.executable, *command], log=log, environment=environment(settings)
            )

    def wait(self, path: str, *, seconds: float = START_SECONDS) -> Self:
        """Wait until `path` answers 200; fail with the log where the process ends first."""

        def answers() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.process.args} ended:\n{self.tail()}")
            try:
                return httpx.get(self.url + path, timeout=5).status_code == 200
            except httpx.HTTPError:
                return False

        try:
            until(answers, seconds=seconds, what=f"{self.url}{path}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None
        return self

    def tail(self, lines: int = 60) -> str:
        """The last lines that the process printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> int:
        """SIGTERM and wait; the exit status."""
        return processes.end(self.process, grace_seconds=self._grace)

    def kill(self) -> None:
        """SIGKILL and wait."""
        self.process.kill()
        self.process.wait()

    def __exit__(self, *_error: object) -> None:
        self.stop()


def start_api(
    settings: Mapping[str, object], log: Path, *, command: Sequence[str] = ("-m", "service")
) -> Running:
    """`python -m service` on a free port; call `.wait("/healthz/live")` next."""
    port = processes.free_port()
    return Running(command, port, {**settings, "port": port}, log, grace=15)


def start_worker(
    settings: Mapping[str, object],
    log: Path,
    *,
    module: str = "workers",
    command: Sequence[str] | None = None,
) -> Running:
    """`python -m workers` with metrics and health on a free port; `.wait("/healthz/ready")`.

    Another `module` or `command` is a worker with a fault of the test's own. It is forked from a
    process that has imported torch, unless its command has other options than `-m`.
    """
    port = processes.free_port()
    mine = {"device": "cpu", "worker_threads": 1, "worker_metrics_port": port}
    return Running(
        command or ("-m", module), port, {**mine, **settings}, log, grace=30, forked=True
    )


def redis_client(url: str) -> Redis:
    """A client for a look into the service's Redis."""
    return Redis.from_url(url, decode_responses=True)


def bench(module: str, *options: str, timeout_seconds: float = 300) -> None:
    """`python -m module` with options; fails with what it wrote last."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
