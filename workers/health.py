"""The worker's own small HTTP server: /metrics, /healthz/live and /healthz/ready.

Live means that the engine makes progress, not that a thread still ticks: a worker that holds
jobs and finishes no step for too long answers 503, and is ended by its watchdog.
"""

import json
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

if TYPE_CHECKING:  # exists for type checkers alone
    from wsgiref.types import StartResponse, WSGIEnvironment

JSON: Final = [("Content-Type", "application/json")]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_args: object) -> None:
        """Say nothing: probes come every few seconds."""


class HealthServer:
    """Serves metrics and health on one port, on threads of its own."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        *,
        live: Callable[[], bool],
        ready: Callable[[], bool],
    ) -> None:
        """Bind at once; port 0 takes a free one. Raises `OSError` where it is taken."""
        self._metrics = make_wsgi_app(registry)
        self._checks = {"/healthz/live": live, "/healthz/ready": ready}
        self._server = make_server(host, port, self._answer, _Server, _Quiet)
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="health", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start)
            return answer
        check = self._checks.get(path)
        if check is None:
            start("404 Not Found", list(JSON))
            return [b"{}"]
        passed = check()
        start("200 OK" if passed else "503 Service Unavailable", list(JSON))
        return [json.dumps({"status": "ok" if passed else "unavailable"}).encode()]
