"""Runs several API processes on one port (IMAGEPROMPT_API_PROCESSES), and keeps their number.

The kernel spreads new connections over them (SO_REUSEPORT). Each counts into files of its own,
which any of them adds up for a scrape; what an ended process has counted stays in the sum.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from types import FrameType
from typing import Final

import structlog
from prometheus_client.multiprocess import mark_process_dead

from service.cli import processes
from service.core.metrics import METRICS_FOLDER
from service.core.settings import Settings

SHARED_PORT: Final = "--shared-port"
"""Argument of a process that is one of several."""
POLL_SECONDS: Final = 0.2
QUICK_SECONDS: Final = 10.0
"""A process that ends in this time with an error cannot start; another one would end like it."""
RESTART_SECONDS: Final = 1.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    for host, port in (
        (settings.host, settings.port),
        (settings.admin_host, settings.admin_port),
    ):
        if port is not None and not _is_free(host, port):
            log.error("cannot listen", cause=f"port {port} is in use")
            return 1
    with tempfile.TemporaryDirectory(prefix="imageprompt-metrics-") as folder:
        return _Supervisor(settings.api_processes, folder).run()


class _Supervisor:
    def __init__(self, count: int, folder: str) -> None:
        self._folder = folder
        self._stopping = False
        self._started_at: dict[subprocess.Popen[bytes], float] = {}
        self._count = count

    def run(self) -> int:
        before = {
            number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            return self._keep()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _keep(self) -> int:
        status = 0
        while self._started_at or not self._stopping:
            for process in [one for one in self._started_at if one.poll() is not None]:
                lived_seconds = time.monotonic() - self._started_at.pop(process)
                mark_process_dead(process.pid, self._folder)  # type: ignore[no-untyped-call]  # upstream's
                if self._stopping:
                    status = status or max(0, process.returncode)
                    continue
                log.error("an API process has ended", pid=process.pid, status=process.returncode)
                if lived_seconds < QUICK_SECONDS and process.returncode > 0:
                    status = process.returncode
                    self._stop(signal.SIGTERM, None)
                else:
                    time.sleep(RESTART_SECONDS)
            while len(self._started_at) < self._count and not self._stopping:
                self._started_at[self._start()] = time.monotonic()
            time.sleep(POLL_SECONDS)
        return status

    def _start(self) -> "subprocess.Popen[bytes]":
        return processes.spawn(
            [sys.executable, "-m", "service", SHARED_PORT],
            log=None,
            environment={**os.environ, METRICS_FOLDER: self._folder},
        )

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        """Pass the signal on; a second one ends what is still served."""
        self._stopping = True
        for process in self._started_at:
            process.send_signal(signal.SIGTERM)


def _is_free(host: str, port: int) -> bool:
    """Whether nothing listens on a port: processes that share one would not notice each other's."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return True  # the processes themselves say what is wrong
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError:
                return False
    return True
