"""A pool of processes that decode uploads, so that no file can harm the API.

Each has bounds on memory and CPU time (`service/submission/decoder_process.py`) and may be
killed. They are started when they are needed and ended when nothing has come for a while, so that
an idle API has none. Each is a new interpreter: a fork of the API would copy its threads' locks,
and multiprocessing's own servers would keep one more process and import the API's main module.
Files are handed over as descriptors, what is in memory as shared memory; the decoder writes what is
stored itself.
"""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any, Final

import structlog

from service.core.errors import Busy, InvalidImage, ServiceError, UnsupportedMedia
from service.core.settings import ROOT
from service.core.upload_types import DAMAGED, MESSAGE_BYTES, Format, Picture, UploadKind
from service.limits import FairSemaphore

MODULE: Final = "service.submission.decoder_process"
"""What a decoder process runs; it is not imported here, since the API needs no Pillow."""
AT_ONCE: Final = 2
"""Processes; each decodes one upload at a time."""
LARGE_PIXELS: Final = 4 * 2**20
"""Pictures above it go one at a time, for a decoder takes up to 12 bytes a pixel."""
IDLE_SECONDS: Final = 60
ANSWER_SECONDS: Final = 60
"""Longer than the CPU time that a decoder may use; a machine that takes longer is busy."""
BUSY_SECONDS: Final = 5
_ATTEMPTS: Final = 2
"""A decoder may be killed from outside, for instance by the kernel when memory runs out."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What is to be stored of an upload: an open file, and the picture in it."""

    file: IO[bytes]
    picture: Picture


class UploadDecoder:
    """Decodes uploads in other processes, all within one event loop."""

    def __init__(self, *, max_pixels: int, idle_seconds: float = IDLE_SECONDS) -> None:
        self._max_pixels = max_pixels
        self._idle_seconds = idle_seconds
        self._free = FairSemaphore(AT_ONCE)
        self._large = FairSemaphore(1)
        self._idle: list[tuple[_Process, asyncio.TimerHandle]] = []

    @asynccontextmanager
    async def decode(
        self, source: IO[bytes], kind: UploadKind, *, owner: str
    ) -> AsyncIterator[Decoded]:
        """Decode a file whole, open on disk or in memory; what is given is open within the context.

        Uploads of one `owner` wait for each other before those of another wait for them.
        Raises `InvalidImage` for what is damaged, over a limit or too costly, `UnsupportedMedia`
        for other kinds of files, and `Busy` where no decoder can be had.
        """
        with os.fdopen(os.memfd_create("upload"), "w+b") as small:
            answer = await self._ask(source, small, kind, owner, LARGE_PIXELS)
            if "pixels" not in answer:
                yield _decoded(answer, source, small)
                return
        async with self._large.hold(owner):
            with TemporaryFile() as large:
                answer = await self._ask(source, large, kind, owner, self._max_pixels)
                yield _decoded(answer, source, large)

    async def _ask(
        self, source: IO[bytes], target: IO[bytes], kind: UploadKind, owner: str, most_pixels: int
    ) -> dict[str, Any]:
        request = {"kind": kind, "most_pixels": most_pixels, "max_pixels": self._max_pixels}
        async with self._free.hold(owner):
            for _ in range(_ATTEMPTS):
                process = self._start()
                answer = None
                try:
                    answer = await process.ask(request, source, target)
                finally:
                    if answer is None or most_pixels > LARGE_PIXELS:
                        process.kill()  # a large picture's memory is free at once
                    else:
                        self._keep(process)
                if answer is None:
                    target.truncate(0)
                    continue
                if "error" in answer:
                    raise _ERRORS[answer["error"]](answer["detail"])
                return answer
        raise _busy()

    def _start(self) -> "_Process":
        """One that is idle, or a new one."""
        if not self._idle:
            return _Process(self._max_pixels)
        process, retirement = self._idle.pop()
        retirement.cancel()
        return process

    def _keep(self, process: "_Process") -> None:
        loop = asyncio.get_running_loop()
        self._idle.append((process, loop.call_later(self._idle_seconds, self._retire, process)))

    def _retire(self, process: "_Process") -> None:
        self._idle = [kept for kept in self._idle if kept[0] is not process]
        process.kill()

    def close(self) -> None:
        """End the processes that are idle; the others end with what they decode."""
        self._idle_seconds = 0
        while self._idle:
            self._start().kill()


class _Process:
    """One decoder process and the socket to it."""

    def __init__(self, max_pixels: int) -> None:
        self._small = os.memfd_create("uploads")
        """Hands over what is in memory: the same pages for one upload after another."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)  # noqa: FBT003 - its only parameter
        self._ready = False
        with theirs:
            arguments = [str(theirs.fileno()), str(max_pixels), str(self._small)]
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, no text of a client
                [sys.executable, "-S", "-P", "-m", MODULE, *arguments],
                pass_fds=[theirs.fileno(), self._small],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
            )

    async def ask(
        self, request: dict[str, Any], source: IO[bytes], target: IO[bytes]
    ) -> dict[str, Any] | None:
        """Hand over a request and its files, and wait for the answer.

        `None` where the process was killed from outside. Raises `InvalidImage` where the file
        made it end, `Busy` where there is no answer in time.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if not self._ready:
                    self._ready = await self._receive() is not None
                if self._ready:
                    with suppress(BrokenPipeError, ConnectionResetError):
                        self._send(request, source, target)
                answer = await self._receive()
        except TimeoutError:
            log.warning("an upload is not decoded in time", seconds=ANSWER_SECONDS)
            raise _busy() from None
        if answer is None:
            await self._explain()
        return answer

    def _send(self, request: dict[str, Any], source: IO[bytes], target: IO[bytes]) -> None:
        files = [target.fileno()]
        if isinstance(source, io.BytesIO):
            size = os.pwrite(self._small, source.getbuffer(), 0)
        else:
            source.flush()
            files.append(source.fileno())
            size = os.fstat(source.fileno()).st_size
        message = json.dumps(request | {"size": size}).encode()
        socket.send_fds(self._socket, [message], files)

    async def _receive(self) -> dict[str, Any] | None:
        """The next message, `None` once the process has ended."""
        loop = asyncio.get_running_loop()
        try:
            message = await loop.sock_recv(self._socket, MESSAGE_BYTES)
        except ConnectionResetError:
            return None
        answer: dict[str, Any] | None = json.loads(message) if message else None
        return answer

    async def _explain(self) -> None:
        """Raise what the end of the process says about the file, if it says anything."""
        code = await asyncio.to_thread(self._process.wait)
        if code in (0, -signal.SIGKILL):
            log.warning("a decoder process was killed; the upload is decoded by another")
        elif code == -signal.SIGXCPU:
            raise InvalidImage("takes too long to decode; save it anew")
        else:
            log.warning("a decoder process ended", exit_code=code, started=self._ready)
            raise InvalidImage(DAMAGED) if self._ready else _busy()

    def kill(self) -> None:
        """End the process, whatever it does."""
        os.close(self._small)
        self._socket.close()
        self._process.kill()
        self._process.wait()


_ERRORS: Final[dict[str, type[ServiceError]]] = {
    error.code: error for error in (InvalidImage, UnsupportedMedia)
}


def _busy() -> Busy:
    return Busy("Pictures cannot be decoded at the moment", retry_after_seconds=BUSY_SECONDS)


def _decoded(answer: dict[str, Any], source: IO[bytes], target: IO[bytes]) -> Decoded:
    picture = Picture(**answer | {"format": Format(answer["format"])})
    return Decoded(source if picture.as_sent else target, picture)


def _environment() -> dict[str, str]:
    """What an interpreter needs: neither the service's secrets nor heaps for threads."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    # Without `site` (-S) an editable installation is not found by itself.
    path = os.pathsep.join(filter(None, [*sys.path, str(ROOT)]))
    return kept | {"PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"}
