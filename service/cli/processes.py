"""Starting and ending child processes so that none outlives its parent. Knows no service."""

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


_PORTS: Final = range(10_000, 30_000)
_KERNELS_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_given: set[int] = set()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on at this moment.

    It is none of those that the kernel gives to connections, nor one that was returned before,
    so that nobody takes it until the caller's process listens on it.
    """
    try:
        lowest, highest = map(int, _KERNELS_PORTS.read_text().split())
    except OSError:
        lowest, highest = 32_768, 65_535
    left = [port for port in _PORTS if not lowest <= port <= highest and port not in _given]
    random.SystemRandom().shuffle(left)
    for port in (*left, *100 * [0]):  # 0: the kernel's choice, where all ports are its own
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
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, both outputs appended to `log`.

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

    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603  the command is ours, never a client's
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
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
