"""Prometheus metrics of both sides, with the field's names and units. Low cardinality only.

Every process builds its own `CollectorRegistry` and exposes it on its own port, so several
workers never share a counter. API processes that share a port expose the sum of all.
"""

import os
import platform
from collections.abc import Collection, Iterable
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service import __version__
from service.core.job import Status

_REQUEST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Up to IMAGEPROMPT_BODY_TIMEOUT_SECONDS."""
_JOB = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 5400)
"""Up to the deadlines of a job: an hour in the queue and half an hour of work."""
_BATCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
STAGES = ("queue", "encode", "denoise", "decode", "upload", "total")
"""Of a job; `JobMetrics` has the seconds of each."""


class Ends:
    """Jobs that came to an end, each counted by the process that ended it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._jobs = Counter(
            "imageprompt_jobs",
            "Jobs that this process ended, by model and final state.",
            ("model", "status"),
            registry=registry,
        )

    def count(self, model: str, status: str) -> None:
        """Count one job; `Transitions` call it."""
        self._jobs.labels(model, status).inc()

    def start_at_zero(self, models: Collection[str]) -> None:
        """Expose 0 before the first end, for no rate sees the step from nothing to a number."""
        for model in models:
            for status in Status:
                if status.is_terminal:
                    self._jobs.labels(model, status.value)


def describe_process(registry: CollectorRegistry) -> None:
    """Expose the process itself: memory, CPU time, open files, start time, and the version."""
    ProcessCollector(registry=registry)
    _describe_build(registry)


def _describe_build(registry: CollectorRegistry) -> None:
    Info("imageprompt_build", "Version of the program.", registry=registry).info(
        {"version": __version__, "python": platform.python_version()}
    )


METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's own variable: where processes that share a port count."""


class _AllProcesses(Collector):
    """What all processes that count in a folder have counted, and what they use together."""

    def __init__(self, folder: str, *, left_out: Collection[str]) -> None:
        self._folder = folder
        self._left_out = left_out

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        counted = MultiProcessCollector(None, self._folder)  # type: ignore[no-untyped-call]  # upstream's
        for family in counted.collect():  # type: ignore[no-untyped-call]  # upstream's
            if family.name not in self._left_out:
                yield family
        yield from self._used()

    def _used(self) -> Iterable[Metric]:
        found: dict[str, Metric] = {}
        for pid in {path.stem.rpartition("_")[2] for path in Path(self._folder).glob("*.db")}:
            for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]  # a default binds it
                before = found.setdefault(family.name, family)
                if before is not family:
                    combine = min if family.name == "process_start_time_seconds" else _sum
                    before.samples = [
                        one._replace(value=combine(one.value, more.value))
                        for one, more in zip(before.samples, family.samples, strict=True)
                    ]
        return found.values()


def _sum(one: float, more: float) -> float:
    return one + more


class ApiMetrics:
    """What the API counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.redis_registry = CollectorRegistry()
        """Read from Redis, so the same for every replica; empty while Redis does not answer."""
        describe_process(self.registry)
        self.ends = Ends(self.registry)
        self.requests = Counter(
            "imageprompt_http_requests",
            "HTTP requests by route, method and status class.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "imageprompt_http_request_seconds",
            "Seconds from the first byte of a request to the last of its answer.",
            ("route", "method"),
            buckets=_REQUEST,
            registry=self.registry,
        )
        self.jobs_accepted = Counter(
            "imageprompt_jobs_accepted",
            "Jobs taken in, by model.",
            ("model",),
            registry=self.registry,
        )
        self.uploaded_bytes = Counter(
            "imageprompt_uploaded_bytes",
            "Bytes of request bodies read.",
            registry=self.registry,
        )
        self.webhooks = Counter(
            "imageprompt_webhooks",
            "Attempts to deliver a webhook, by outcome: delivered, gone or failed.",
            ("outcome",),
            registry=self.registry,
        )
        for outcome in ("delivered", "gone", "failed"):
            self.webhooks.labels(outcome)
        self.storage_ready = Gauge(
            "imageprompt_storage_ready",
            "1 when the storage took an object and returned it.",
            multiprocess_mode="mostrecent",
            registry=self.registry,
        )
        self.redis_memory = Gauge(
            "imageprompt_redis_memory_bytes",
            "Memory that Redis uses for its data.",
            registry=self.redis_registry,
        )
        self.redis_evicts = Gauge(
            "imageprompt_redis_may_evict",
            "1 where Redis' maxmemory-policy lets it delete accepted jobs.",
            registry=self.redis_registry,
        )
        self.redis_evicted_keys = Gauge(
            "imageprompt_redis_evicted_keys",
            "Keys that Redis has deleted for lack of memory since it started.",
            registry=self.redis_registry,
        )
        self.redis_memory_limit = Gauge(
            "imageprompt_redis_memory_limit_bytes",
            "Redis' maxmemory; 0 where it has none.",
            registry=self.redis_registry,
        )
        self.api_keys_missing = Gauge(
            "imageprompt_api_keys_missing",
            "1 where there have been API keys and Redis has none, though none was revoked.",
            multiprocess_mode="mostrecent",
            registry=self.registry,
        )
        self.webhook_outbox = Gauge(
            "imageprompt_webhook_outbox",
            "Webhooks that are still to be delivered.",
            registry=self.redis_registry,
        )
        self.queue_depth = Gauge(
            "imageprompt_queue_jobs",
            "Jobs waiting for a worker.",
            registry=self.redis_registry,
        )
        self.running_jobs = Gauge(
            "imageprompt_running_jobs",
            "Jobs that workers hold.",
            registry=self.redis_registry,
        )
        self.oldest_seconds = Gauge(
            "imageprompt_queue_oldest_seconds",
            "Age of the oldest waiting job.",
            registry=self.redis_registry,
        )
        self.workers_ready = Gauge(
            "imageprompt_workers_ready",
            "Warm workers with a recent heartbeat.",
            registry=self.redis_registry,
        )

    def render(self) -> bytes:
        """The text of all that is not read from Redis: of all processes that share a port."""
        folder = os.environ.get(METRICS_FOLDER)
        if folder is None:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        _describe_build(together)
        from_redis = {family.name for family in self.redis_registry.collect()}
        together.register(_AllProcesses(folder, left_out=from_redis))
        return generate_latest(together)

    def start_at_zero(self, models: Collection[str]) -> None:
        """Expose the counters of these models before their first job."""
        for model in models:
            self.jobs_accepted.labels(model)
        self.ends.start_at_zero(models)


class WorkerMetrics:
    """What a worker counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        describe_process(self.registry)
        self.ends = Ends(self.registry)
        self.stage_seconds = Histogram(
            "imageprompt_stage_seconds",
            "Seconds of a succeeded job by stage: queue, encode, denoise, decode, upload, total.",
            ("stage",),
            buckets=_JOB,
            registry=self.registry,
        )
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        self.steps = Counter(
            "imageprompt_steps",
            "Batched denoising steps (UNet forwards).",
            ("model",),
            registry=self.registry,
        )
        self.batch_rows = Histogram(
            "imageprompt_batch_rows",
            "Rows that shared one UNet forward.",
            ("model",),
            buckets=_BATCH,
            registry=self.registry,
        )
        self.embedding_cache = Counter(
            "imageprompt_embedding_cache",
            "Look-ups of image embeddings, by result: process, redis or miss.",
            ("result",),
            registry=self.registry,
        )
        for result in ("process", "redis", "miss"):
            self.embedding_cache.labels(result)
        self.encoder_runs = Counter(
            "imageprompt_encoder_runs",
            "Image prompts that an image encoder was run for.",
            registry=self.registry,
        )
        self.recompiles = Counter(
            "imageprompt_recompiles",
            "Compilations of the UNet after warm-up; should stay 0.",
            registry=self.registry,
        )
        self.out_of_memory = Counter(
            "imageprompt_out_of_memory",
            "Times the device ran out of memory.",
            registry=self.registry,
        )
        self.running_jobs = Gauge(
            "imageprompt_worker_running_jobs",
            "Jobs that this worker holds.",
            registry=self.registry,
        )
        self.ready = Gauge(
            "imageprompt_worker_ready",
            "1 when every model is loaded and warm.",
            registry=self.registry,
        )
        self.device_memory = Gauge(
            "imageprompt_device_memory_bytes",
            "Memory of the GPU that torch holds, by kind: allocated, reserved, peak.",
            ("kind",),
            registry=self.registry,
        )
        self.last_step = Gauge(
            "imageprompt_last_step_timestamp_seconds",
            "Unix time of the last finished denoising step.",
            registry=self.registry,
        )

    def start_at_zero(self, models: Collection[str]) -> None:
        """Expose the counters of these models before their first job."""
        for model in models:
            self.steps.labels(model)
        self.ends.start_at_zero(models)
