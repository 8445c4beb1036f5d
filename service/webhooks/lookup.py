"""Looks names up in threads of its own, so that a silent name server holds up nobody else.

A lookup cannot be broken off: its thread stays until libc gives up, which may take half a minute.
Whoever waits does so for some seconds only; one name has one thread, however many wait for it.
It knows nothing of which addresses are allowed.
"""

import asyncio
import contextlib
import socket
import threading
from typing import Final

WAIT_SECONDS: Final = 10.0
AT_ONCE: Final = 64
STRANGERS_AT_ONCE: Final = 48
"""Of these, for names that were not found before: slow ones among them leave the others room."""
KNOWN_NAMES: Final = 10_000


class LookupFailed(Exception):
    """Raised when a name has no address, or nobody tells it in time."""


class LookupsBusy(Exception):
    """Raised when as many names are looked up as may be; it says nothing of this one."""


class Lookups:
    """Lookups under way, and which names were found before."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Future[list[str]]] = {}
        self._known: dict[str, None] = {}

    async def find(self, host: str) -> list[str]:
        """The addresses of a name. Raises `LookupFailed` or `LookupsBusy`."""
        found = self._running.get(host) or self._start(host)
        try:
            # Shielded: others may wait for it, and its thread goes on in any case.
            return await asyncio.wait_for(asyncio.shield(found), WAIT_SECONDS)
        except (OSError, UnicodeError):  # among them TimeoutError
            raise LookupFailed from None

    def _start(self, host: str) -> asyncio.Future[list[str]]:
        if len(self._running) >= (AT_ONCE if host in self._known else STRANGERS_AT_ONCE):
            raise LookupsBusy
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()
        self._running[host] = found
        found.add_done_callback(lambda done: self._ended(host, done))
        # Not a pool of the standard library: the process would wait for its threads at its end.
        threading.Thread(target=_look, args=(host, loop, found), daemon=True).start()
        return found

    def _ended(self, host: str, done: asyncio.Future[list[str]]) -> None:
        del self._running[host]
        self._known.pop(host, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._known[host] = None
        if len(self._known) > KNOWN_NAMES:
            del self._known[next(iter(self._known))]


def _look(host: str, loop: asyncio.AbstractEventLoop, found: asyncio.Future[list[str]]) -> None:
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in entries]
    except (OSError, UnicodeError) as error:
        _tell(loop, found, error)
    else:
        _tell(loop, found, addresses)


def _tell(
    loop: asyncio.AbstractEventLoop,
    found: asyncio.Future[list[str]],
    answer: list[str] | Exception,
) -> None:
    def tell() -> None:
        if found.cancelled():
            return
        if isinstance(answer, Exception):
            found.set_exception(answer)
        else:
            found.set_result(answer)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(tell)
