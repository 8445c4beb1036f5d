"""Turns what the engine says of itself into Prometheus metrics."""

import importlib
from typing import Literal

from service.core.metrics import WorkerMetrics


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
