"""Workers forked from a process that has imported torch: 7 s of CPU time less for each.

Such a process is all that `python -m MODULE` is, but for those imports.
"""

import ctypes
import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PRELOADED = (
    "service.core.queue",
    "service.core.tracing",
    "workers.consumer",
    "workers.eligibility",
    "workers.embedding_store",
    "workers.engine.engine",
    "workers.images",
    "workers.liveness",
    "workers.monitoring",
    "workers.progress",
    "workers.task",
)
"""Not `workers.__main__`: each process runs that as its own main module."""


class Forked:
    """The part of `subprocess.Popen` that tests use, for a forked process."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start `python -m` with a module and its arguments; the process dies with this one."""
        self.args = ["python", "-m", *command]
        self._process = _context().Process(
            target=_run, args=(list(command), dict(environment), str(log)), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status once it has ended; negative: by that signal."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raises `subprocess.TimeoutExpired`."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def _context() -> ForkServerContext:
    """The server, whose own environment is that of this process when it is first asked for."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def _run(command: list[str], environment: Mapping[str, str], log: str) -> None:
    """What a forked process does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
