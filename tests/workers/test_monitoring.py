"""The worker's metrics and health."""

import select
import socket
import threading
import time
from functools import partial

import httpx
import pytest
import torch
from prometheus_client import CollectorRegistry

from service.core.metrics import WorkerMetrics
from tests.running import until
from workers.monitoring import (
    MOST_CONNECTIONS,
    HealthServer,
    MetricsObserver,
    _QuietHandler,
    watch_memory,
)


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics()


@pytest.fixture
def observer(metrics: WorkerMetrics) -> MetricsObserver:
    return MetricsObserver(metrics)


def value(metrics: WorkerMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"imageprompt_{name}", labels)


def test_a_forward_is_a_step_of_so_many_rows_at_this_moment(
    metrics: WorkerMetrics, observer: MetricsObserver
) -> None:
    before = time.time()
    for rows in (2, 6):
        observer.on_forward("tiny", rows)
    assert value(metrics, "steps_total", model="tiny") == 2
    assert value(metrics, "batch_rows_count", model="tiny") == 2
    assert value(metrics, "batch_rows_sum", model="tiny") == 8
    last = value(metrics, "last_step_timestamp_seconds")
    assert last is not None
    assert before <= last <= time.time()


def test_compilations_and_lack_of_memory_are_counted_apart(
    metrics: WorkerMetrics, observer: MetricsObserver
) -> None:
    for _ in range(2):
        observer.on_recompile()
    for _ in range(3):
        observer.on_out_of_memory()
    assert value(metrics, "recompiles_total") == 2
    assert value(metrics, "out_of_memory_total") == 3


def test_embeddings_are_counted_by_where_they_were_found(
    metrics: WorkerMetrics, observer: MetricsObserver
) -> None:
    for level in ("process", "store", "store", "miss"):
        observer.on_embedding_lookup(level)
    observer.on_encoder_run()
    found = [
        value(metrics, "embedding_cache_total", result=result)
        for result in ("process", "redis", "miss")
    ]
    assert found == [1, 2, 1]
    assert value(metrics, "encoder_runs_total") == 1


def test_memory_of_the_gpu_is_read_at_each_scrape(
    metrics: WorkerMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"memory_allocated": 1, "memory_reserved": 2, "max_memory_allocated": 3}
    for name in figures:
        monkeypatch.setattr(torch.cuda, name, partial(figures.__getitem__, name))
    watch_memory(metrics, "cuda")
    figures["memory_allocated"] = 9
    kinds = ("allocated", "reserved", "peak")
    assert [value(metrics, "device_memory_bytes", kind=kind) for kind in kinds] == [9, 2, 3]


def test_a_cpu_has_no_such_memory_to_show(metrics: WorkerMetrics) -> None:
    watch_memory(metrics, "cpu")
    assert value(metrics, "device_memory_bytes", kind="allocated") is None


def test_health_and_metrics_are_served() -> None:
    state = {"live": True, "ready": False}
    server = HealthServer(
        "127.0.0.1",
        0,
        CollectorRegistry(),
        live=lambda: state["live"],
        ready=lambda: state["ready"],
    )
    url = f"http://127.0.0.1:{server.port}"
    try:
        assert httpx.get(f"{url}/healthz/live").status_code == 200
        assert httpx.get(f"{url}/healthz/ready").status_code == 503
        state.update(live=False)
        assert httpx.get(f"{url}/healthz/live").status_code == 503
        assert httpx.get(f"{url}/metrics").status_code == 200
        assert httpx.get(f"{url}/other").status_code == 404
    finally:
        server.close()


def serve(port: int = 0, **options: bool) -> HealthServer:
    registry = CollectorRegistry()
    return HealthServer(
        "127.0.0.1", port, registry, live=lambda: True, ready=lambda: True, **options
    )


def test_second_worker_of_a_host_takes_a_free_port_instead_of_the_default() -> None:
    first = serve()
    try:
        with pytest.raises(OSError, match="in use"):
            serve(first.port)
        second = serve(first.port, fall_back=True)
        try:
            assert second.port != first.port
            assert httpx.get(f"http://127.0.0.1:{second.port}/healthz/live").status_code == 200
        finally:
            second.close()
    finally:
        first.close()


def test_connections_that_send_nothing_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take no thread beyond the limit, and none for long."""
    monkeypatch.setattr(_QuietHandler, "timeout", 0.5)
    server, before = serve(), threading.active_count()
    address = ("127.0.0.1", server.port)
    idle = [socket.create_connection(address) for _ in range(3 * MOST_CONNECTIONS)]
    try:
        until(lambda: len(select.select(idle, [], [], 0)[0]) >= 2 * MOST_CONNECTIONS)
        assert threading.active_count() - before <= MOST_CONNECTIONS
        until(lambda: httpx_status(server.port) == 200, what="an answer once they timed out")
    finally:
        for one in idle:
            one.close()
        server.close()


def httpx_status(port: int) -> int | None:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz/live").status_code
    except httpx.HTTPError:
        return None
