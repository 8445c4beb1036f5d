"""`imageprompt up`: Redis, API and workers on loopback under one parent, data in one folder.

It starts the same processes as a cluster and stops them in order; a crashed one is restarted.
None outlives the parent, even if that is killed with SIGKILL (see `processes.spawn`).
"""

import fcntl
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Final

import httpx
from rich.console import Console

from service.cli import processes
from service.cli.processes import RedisServer
from service.core.errors import ConfigurationError
from service.core.settings import load_settings, unknown_variables

HOST: Final = "127.0.0.1"
DATA: Final = Path("data")
"""Default folder of all data and logs."""
REDIS_URL: Final = "redis.url"
"""File in it with the URL of Redis, whose password changes with every start."""
API_URL: Final = "api.url"
"""File in it with the address of the running API."""
KEY: Final = "key.json"
"""File in it with the first API key, for the commands of this folder."""
LOG_BYTES: Final = 10 * 2**20
OLD_LOGS: Final = 3
"""A log that has `LOG_BYTES` is renamed; so many of the older ones are kept."""
START_SECONDS: Final = 900.0
"""How long models may take to load and warm up."""
POLL_SECONDS: Final = 0.1
READ_SECONDS: Final = 5.0
"""How long an ended process' last lines are waited for."""
READY_POLL_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
STABLE_SECONDS: Final = 60.0
"""A child that has run for so long is restarted without a growing pause."""
CONFIGURATION_WRONG: Final = 2
DRAIN_SECONDS: Final = 10.0
OWN: Final = frozenset({"host", "port", "redis_url", "storage_url"})
"""Settings of a cluster that have no effect here."""
API_GRACE_SECONDS: Final = 10.0
"""Uploads in progress get no longer than this when a user stops the service."""


class StartError(Exception):
    """Raised when the service cannot start; the message is for users."""


@dataclass
class Child:
    """One process of the service, and how to restart it."""

    name: str
    log: Path
    start: Callable[[], subprocess.Popen[bytes]]
    """The process, with its output in a pipe."""
    grace_seconds: float
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    pause_seconds: float = field(default=0.5)
    reader: threading.Thread | None = None

    def ensure(self, console: Console) -> None:
        """Start the process if it is not running, after a growing pause if it keeps ending.

        Raises `StartError` with the cause where it ended because the configuration is wrong.
        """
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            if self.reader is not None:
                self.reader.join(READ_SECONDS)
            if self.process.returncode == CONFIGURATION_WRONG:
                raise StartError(f"{self.name}: {self.last_log_line()} (log: {self.log})")
            console.print(
                f"[yellow]{self.name} ended with status {self.process.returncode}; "
                f"restarting it in {self.pause_seconds:g} s[/] (log: {self.log})"
            )
            if now - self.started_at > STABLE_SECONDS:
                self.pause_seconds = 0.5
            self.process, self.start_at = None, now + self.pause_seconds
            self.pause_seconds = min(2 * self.pause_seconds, LONGEST_PAUSE_SECONDS)
        if self.process is None and now >= self.start_at:
            self.process, self.started_at = self.start(), now
            arguments = (self.process.stdout, self.log, console)
            self.reader = threading.Thread(target=_keep_log, args=arguments, daemon=True)
            self.reader.start()

    def last_log_line(self) -> str:
        """The cause or stage of the last structured log line, else the last line itself."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in reversed(lines):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and (text := entry.get("cause") or entry.get("stage")):
                return str(text)
        return lines[-1] if lines else ""


def _keep_log(output: IO[bytes], log: Path, console: Console) -> None:
    """Write a process' output to its log, and one line about each job that ends to the terminal."""
    writer = RotatingFileHandler(log, maxBytes=LOG_BYTES, backupCount=OLD_LOGS, encoding="utf-8")
    with closing(writer), output:
        for line in output:
            text = line.decode("utf-8", errors="replace").rstrip("\n")
            writer.emit(logging.makeLogRecord({"msg": text}))
            about = _about_job(text)
            if about is not None:
                console.print(about, highlight=False, markup=False, soft_wrap=True)


def _about_job(line: str) -> str | None:
    """What a log line says of a job that has ended or was put off."""
    if '"job ' not in line:
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    event = entry.get("event") if isinstance(entry, dict) else None
    match event:
        case "job succeeded":
            return f"{entry['job_id']}  succeeded in {entry['total_seconds']:.1f} s"
        case "job failed" | "job rejected":
            return f"{entry.get('job_id')}  failed: {entry.get('detail') or entry.get('cause')}"
        case "job handed back":
            return f"{entry['job_id']}  requeued"
        case _:
            return None


class AllInOne:
    """Redis, API and workers as children of this process."""

    def __init__(
        self, data: Path, *, port: int, workers: int, console: Console, fsync_always: bool = False
    ) -> None:
        """Raise `StartError` where a setting is wrong."""
        self._console = console
        self.url = f"http://{HOST}:{port}"
        self._stopping = False
        logs = data / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        redis = RedisServer(
            data / "redis",
            password=secrets.token_hex(16),
            fsync="always" if fsync_always else "everysec",
        )
        self.redis_url_file = data / REDIS_URL
        self.redis_url_file.touch(mode=0o600)
        self.redis_url_file.write_text(redis.url, encoding="utf-8")
        self._api_url_file = data / API_URL
        self._api_url_file.write_text(self.url, encoding="utf-8")
        drain, grace = _graces(console)
        # On a CPU, workers that use all cores each hold each other up.
        shared = {"IMAGEPROMPT_WORKER_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
        environment = {
            **(shared if workers > 1 else {}),
            **os.environ,
            "IMAGEPROMPT_HOST": HOST,
            "IMAGEPROMPT_PORT": str(port),
            "IMAGEPROMPT_REDIS_URL": redis.url,
            "IMAGEPROMPT_STORAGE_URL": (data / "storage").resolve().as_uri(),
            "IMAGEPROMPT_DRAIN_SECONDS": str(drain),
            "IMAGEPROMPT_GRACE_SECONDS": str(grace),
        }

        def module(name: str) -> Callable[[], subprocess.Popen[bytes]]:
            return lambda: processes.spawn(
                [sys.executable, "-m", name],
                log=subprocess.PIPE,
                environment=environment | {"IMAGEPROMPT_WORKER_METRICS_PORT": "0"},
            )

        self._redis = Child("redis", redis.log, partial(redis.spawn, piped=True), grace_seconds=15)
        self._api = Child("api", logs / "api.log", module("service"), grace + 20)
        self._workers = [
            Child(name, logs / f"{name}.log", module("workers"), drain + 30)
            for name in (f"worker-{number}" for number in range(1, workers + 1))
        ]

    @property
    def children(self) -> list[Child]:
        """All children in the order of their start."""
        return [self._redis, self._api, *self._workers]

    def start(self) -> None:
        """Start everything and wait until jobs can be processed.

        Raises `StartError` where that fails.
        """
        until = time.monotonic() + START_SECONDS
        with self._console.status("starting") as status:
            while not self._is_ready():
                self.keep()
                if self._stopping:
                    raise StartError("stopped while starting")
                if time.monotonic() > until:
                    raise StartError(f"not ready after {START_SECONDS:g} s; see {self._api.log}")
                if self._workers[0].log.exists():
                    status.update(f"starting: {self._workers[0].last_log_line()}")
                time.sleep(READY_POLL_SECONDS)

    def keep(self) -> None:
        """Restart processes that have ended."""
        for child in self.children:
            child.ensure(self._console)

    def run(self) -> None:
        """Keep all processes running until `request_stop`."""
        while not self._stopping:
            self.keep()
            time.sleep(POLL_SECONDS)

    def request_stop(self) -> None:
        """Make `start` and `run` return; a second call makes workers requeue their jobs at once."""
        if self._stopping:
            self._signal_workers()
        self._stopping = True

    def stop(self) -> None:
        """End the API, then the workers, then Redis."""
        if self._api.process is not None:
            processes.end(self._api.process, grace_seconds=self._api.grace_seconds)
        self._signal_workers()
        for worker in self._workers:
            if worker.process is not None:
                _wait(worker.process, worker.grace_seconds)
        if self._redis.process is not None:
            processes.end(self._redis.process, grace_seconds=self._redis.grace_seconds)
        for file in (self.redis_url_file, self._api_url_file):
            file.unlink(missing_ok=True)

    def _signal_workers(self) -> None:
        for worker in self._workers:
            if worker.process is not None and worker.process.poll() is None:
                worker.process.terminate()

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz/ready", timeout=10).is_success
        except httpx.HTTPError:
            return False


def _graces(console: Console) -> tuple[float, float]:
    """How long workers and API may take to end: as set, or shorter than in a cluster.

    Names settings that do not exist or have no effect here. Raises `StartError` where one is wrong.
    """
    for variable in unknown_variables():
        console.print(f"[yellow]unknown setting is ignored:[/] {variable}", soft_wrap=True)
    try:
        settings = load_settings()
    except ConfigurationError as error:
        raise StartError(str(error)) from None
    for name in sorted(OWN & settings.model_fields_set):
        console.print(
            f"[yellow]IMAGEPROMPT_{name.upper()} is not used:[/] `up` has its own", soft_wrap=True
        )
    chosen = settings.model_dump(include=settings.model_fields_set)
    return (
        chosen.get("drain_seconds", DRAIN_SECONDS),
        chosen.get("grace_seconds", API_GRACE_SECONDS),
    )


def _usable(port: int) -> int:
    """The port, or a free one for 0. Raises `StartError` where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise StartError(f"port {port} is in use; choose another one with --port") from None
    return port or processes.free_port()


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def running(
    data: Path, *, port: int, workers: int, console: Console, fsync_always: bool = False
) -> Iterator[AllInOne]:
    """Run the whole service for the length of the context. Raises `StartError`.

    Call it from the main thread: it handles SIGTERM and SIGINT meanwhile.
    """
    port = _usable(port)
    data.mkdir(parents=True, exist_ok=True)
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartError(
                f"another `imageprompt up` uses {data}; choose another folder with --data"
            ) from None
        service = AllInOne(
            data, port=port, workers=workers, console=console, fsync_always=fsync_always
        )
        before = {
            number: signal.signal(number, lambda *_: service.request_stop())
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            service.start()
            yield service
        finally:
            service.stop()
            for number, handler in before.items():
                signal.signal(number, handler)
