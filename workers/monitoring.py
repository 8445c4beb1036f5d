"""A worker's Prometheus metrics, and the small HTTP server for them and for its health.

Live means that the engine makes progress, not that a thread still runs: a worker that holds jobs
and finishes no step for too long answers 503, and its watchdog ends it.
"""

import errno
import importlib
import json
import sys
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final, Literal
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

from service.core.metrics import WorkerMetrics

if TYPE_CHECKING:  # exists for type checkers alone
    from wsgiref.types import StartResponse, WSGIEnvironment

logger = structlog.get_logger(__name__)

JSON: Final = [("Content-Type", "application/json")]


class MetricsObserver:
    """The engine's `Observer`. Counters are safe from any thread."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics

    def on_forward(self, model: str, rows: int) -> None:
        """Count one UNet forward over `rows` rows."""
        self._metrics.steps.labels(model).inc()
        self._metrics.batch_rows.labels(model).observe(rows)
        self._metrics.last_step.set_to_current_time()

    def on_embedding_lookup(self, level: Literal["process", "store", "miss"]) -> None:
        """Count one look-up of an image embedding."""
        result = "redis" if level == "store" else level
        self._metrics.embedding_cache.labels(result).inc()

    def on_encoder_run(self) -> None:
        """Count one image prompt that was encoded."""
        self._metrics.encoder_runs.inc()

    def on_recompile(self) -> None:
        """Count one compilation after warm-up."""
        self._metrics.recompiles.inc()

    def on_out_of_memory(self) -> None:
        """Count one time that the device ran out of memory."""
        self._metrics.out_of_memory.inc()


def watch_memory(metrics: WorkerMetrics, device: str) -> None:
    """Show the GPU's memory, read at each scrape; on a CPU there is nothing to show."""
    if device != "cuda":
        return
    cuda = importlib.import_module("torch").cuda
    for kind, read in (
        ("allocated", cuda.memory_allocated),
        ("reserved", cuda.memory_reserved),
        ("peak", cuda.max_memory_allocated),
    ):
        metrics.device_memory.labels(kind).set_function(read)


MOST_CONNECTIONS: Final = 16
"""Of the health server at once; further ones are closed."""
CONNECTION_SECONDS: Final = 5.0
"""How long a connection may take to send its request, or to read the answer."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread of its own, if one is free."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Free the place of a connection when it ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  the base's
        """Log a connection that broke off, which is no fault of the worker's."""
        logger.debug("health request failed", cause=repr(sys.exception()))


class _QuietHandler(WSGIRequestHandler):
    timeout = CONNECTION_SECONDS

    def log_message(self, *_args: object) -> None:
        """Log nothing: probes come every few seconds."""


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
        fall_back: bool = False,
    ) -> None:
        """Bind at once; port 0 takes a free one, as does a taken one with `fall_back`.

        Raises `OSError` where the port cannot be used.
        """
        self._metrics = make_wsgi_app(registry)
        self._checks = {"/healthz/live": live, "/healthz/ready": ready}
        try:
            self._server = self._listen(host, port)
        except OSError as error:
            if not fall_back or error.errno != errno.EADDRINUSE:
                raise
            self._server = self._listen(host, 0)
            logger.warning(
                "the default port is taken; metrics and health are on another one",
                taken=port,
                port=self._server.server_port,
            )
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="health", daemon=True
        )
        self._thread.start()

    def _listen(self, host: str, port: int) -> WSGIServer:
        return make_server(host, port, self._answer, _Server, _QuietHandler)

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
