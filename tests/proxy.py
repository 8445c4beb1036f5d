"""A TCP proxy in front of a storage, which can be told to answer 500 or to hang.

Everything behind it stays real; only what a network or an overloaded store would do is done here.
"""

import select
import socket
import threading
from enum import Enum
from urllib.parse import urlsplit

REFUSAL = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Mode(Enum):
    """How the proxy treats every connection, old ones too."""

    PASS = "pass"
    FAIL = "fail"
    HANG = "hang"


class Proxy:
    """Listens on a free port and forwards to `target` as long as its mode says so."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self.mode = Mode.PASS
        self._closing = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Refuse from now on."""
        self._closing.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            other = {client: server, server: client}
            while not self._closing.is_set():
                readable, _, _ = select.select(list(other), [], [], 0.1)
                if self.mode is Mode.HANG:
                    self._closing.wait(0.1)
                    continue
                for one in readable:
                    try:
                        data = one.recv(65536)
                        if not data:
                            return
                        if self.mode is Mode.FAIL:
                            client.sendall(REFUSAL)
                            return
                        other[one].sendall(data)
                    except OSError:
                        return
