"""A worker's Prometheus metrics, and the small HTTP server for them and for its health.

Live means that the engine makes progress, not that a thread still runs: a worker that holds jobs
and finishes no step for too long answers 503, and its watchdog ends it.
"""

import importlib
import json
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Final, Literal
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from service.core.metrics import WorkerMetrics

if TYPE_CHECKING:  # exists for type checkers alone
    from wsgiref.types import StartResponse, WSGIEnvironment

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
