"""`python -m workers`: put a worker together from the environment and run it until SIGTERM.

Redis or storage being away is no reason to end: it waits for them, and says so.
"""

import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from threading import Event
from typing import Any

import structlog
from redis import Redis, RedisError

from service.core import logging, tracing, worker_registry
from service.core.catalog import load_catalog
from service.core.errors import ConfigurationError
from service.core.metrics import WorkerMetrics
from service.core.queue import connect
from service.core.settings import Settings, load_settings
from service.core.storage import Storage, StorageError
from service.core.transitions import Transitions
from workers import retry
from workers.consumer import Runner
from workers.eligibility import Elsewhere
from workers.embedding_store import RedisEmbeddingStore
from workers.engine.api import Options
from workers.engine.engine import Engine, load_engine
from workers.health import HealthServer
from workers.isolation import Isolation
from workers.liveness import SWEEP_SECONDS, Repeat, Sweep
from workers.monitoring import MetricsObserver, watch_memory
from workers.progress import Reporter
from workers.task import Collaborators, generate
from workers.watchdog import LOOK_SECONDS, Watchdog

logger = structlog.get_logger("workers")

CONFIGURATION_WRONG = 2


class Worker:
    """One worker process, from loading to its last word."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._metrics = WorkerMetrics()
        self._watchdog: Watchdog | None = None
        self._ready = False
        try:
            self._health = HealthServer(
                settings.host,
                settings.worker_metrics_port,
                self._metrics.registry,
                live=lambda: self._watchdog is None or self._watchdog.healthy(),
                ready=self._is_ready,
            )
        except OSError as error:
            raise ConfigurationError(
                f"IMAGEPROMPT_WORKER_METRICS_PORT {settings.worker_metrics_port} cannot be used on "
                f"IMAGEPROMPT_HOST {settings.host}: {error.strerror}"
            ) from None

    def run(self) -> None:
        """Load, warm up, work until stopped. Raises `ConfigurationError` before anything runs."""
        settings = self._settings
        redis = connect(settings.redis_url.get_secret_value())
        storage = Storage.from_settings(settings)
        engine = self._load(redis)
        transitions = Transitions(
            redis,
            retention_seconds=settings.job_retention_seconds,
            tombstone_seconds=settings.tombstone_seconds,
            max_attempts=settings.max_attempts,
            on_end=self._metrics.ends.count,
        )
        wait_for("Redis", redis.ping, RedisError)
        wait_for("storage", storage.check, StorageError)
        reporter = Reporter(redis, transitions)
        shared = Collaborators(
            redis=redis,
            storage=storage,
            transitions=transitions,
            submit=engine.submit,
            elsewhere=Elsewhere(redis, engine.serves, engine.models),
            reporter=reporter,
            isolation=Isolation(),
            metrics=self._metrics,
            worker_name=self._name,
            max_attempts=settings.max_attempts,
        )
        runner: Runner = wait_for(
            "Redis",
            lambda: Runner(
                redis,
                settings.queue,
                name=self._name,
                task=lambda job_id, let_go: generate(job_id, shared, let_go=let_go),
                accepting=lambda: engine.alive,
                transitions=transitions,
                slots=settings.worker_slots,
                lease_seconds=settings.lease_seconds,
            ),
            RedisError,
        )
        self._metrics.running_jobs.set_function(lambda: len(runner.held))
        self._metrics.ready.set_function(lambda: float(self._is_ready()))
        watchdog = Watchdog(engine, step_timeout_seconds=settings.step_timeout_seconds)
        self._watchdog, self._ready = watchdog, True
        threads = [
            Repeat("heartbeat", partial(self._beat, redis, runner, engine), self._beat_seconds()),
            Repeat("sweep", Sweep(runner.leases), SWEEP_SECONDS),
            Repeat("watchdog", watchdog, LOOK_SECONDS),
        ]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: runner.stop())
        for thread in (reporter, *threads):
            thread.start()
        logger.info("worker ready", name=self._name, models=sorted(engine.models))
        try:
            wait_for("Redis", partial(self._beat, redis, runner, engine), RedisError)
            runner.work_until_stopped(settings.drain_seconds)
        finally:
            self._ready = False
            for thread in threads:
                thread.close()
            reporter.close()
            self._withdraw(redis)
            engine.stop()
            self._health.close()
        logger.info("worker ended", name=self._name)

    def _load(self, redis: Redis) -> Engine:
        settings, began = self._settings, time.monotonic()
        catalog = load_catalog(settings.models)
        self._metrics.start_at_zero(catalog.models)
        engine = load_engine(
            catalog,
            Options(
                slots=settings.worker_slots,
                threads=settings.worker_threads,
                job_timeout_seconds=settings.job_timeout_seconds,
                store=RedisEmbeddingStore(
                    redis,
                    keep_seconds=settings.embedding_cache_seconds,
                    most_bytes=settings.embedding_cache_bytes,
                ),
                cache_entries=settings.embedding_cache_entries,
                preview_every_steps=settings.preview_every_steps,
                observer=MetricsObserver(self._metrics),
                on_stage=lambda stage: logger.info("engine", stage=stage),
            ),
            device=settings.device,
            attention=settings.attention,
            compile=settings.compile,
        )
        engine.warm_up()
        watch_memory(self._metrics, engine.device)
        logger.info("engine warm", seconds=round(time.monotonic() - began, 2), device=engine.device)
        return engine

    def _beat(self, redis: Redis, runner: Runner, engine: Engine) -> None:
        runner.heartbeat()
        worker_registry.announce(
            redis,
            worker_registry.Presence(
                name=self._name,
                ready=self._is_ready(),
                models=tuple(engine.models),
                device=engine.device,
                slots=self._settings.worker_slots,
                running=len(runner.held),
                row_steps_per_second=engine.row_steps_per_second,
                at=time.time(),
            ),
        )

    def _beat_seconds(self) -> float:
        return min(self._settings.lease_seconds / 4, worker_registry.PRESENCE_SECONDS / 5)

    def _is_ready(self) -> bool:
        return self._ready and self._watchdog is not None and self._watchdog.healthy()

    def _withdraw(self, redis: Redis) -> None:
        try:
            worker_registry.withdraw(redis, self._name)
        except RedisError as error:
            logger.warning("left without a word to Redis", cause=type(error).__name__)


def wait_for(what: str, action: Callable[[], Any], errors: type[Exception]) -> Any:
    """Call `action` until it succeeds and return its result; each failure is a log line."""
    return retry.persist(
        action,
        errors,
        interrupt=Event(),
        on_error=lambda error: logger.warning("waiting", for_=what, cause=type(error).__name__),
    )


def main() -> None:
    """Run one worker. Exit status 0 after a signal, 2 where the configuration is wrong."""
    settings = load_settings()
    logging.configure(settings.log_level, settings.log_format)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        tracing.configure("imageprompt-worker")
        Worker(settings).run()
    except ConfigurationError as error:
        logger.critical("configuration is wrong", cause=str(error))
        sys.exit(CONFIGURATION_WRONG)


if __name__ == "__main__":
    main()
