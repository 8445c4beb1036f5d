"""`python -m workers`: run one worker, configured by the environment, until SIGTERM.

A worker that cannot reach Redis or the storage logs it and keeps trying.
"""

import gc
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

import structlog
from redis import Redis, RedisError

from service.core import logging, redis_server, tracing, worker_registry
from service.core.catalog import Catalog, load_catalog
from service.core.errors import ConfigurationError
from service.core.metrics import WorkerMetrics
from service.core.queue import connect
from service.core.settings import Settings, load_settings, unknown_variables
from service.core.storage import Storage, StorageError
from service.core.transitions import Transitions
from workers import retry
from workers.consumer import Consumer
from workers.eligibility import Eligibility, Quarantine
from workers.embedding_store import RedisEmbeddingStore
from workers.engine.api import Options
from workers.images import PictureEncoder
from workers.liveness import CHECK_SECONDS, REAP_SECONDS, LeaseReaper, PeriodicThread, Watchdog
from workers.monitoring import HealthServer, MetricsObserver, watch_memory
from workers.progress import ProgressWriter
from workers.task import Collaborators, generate

if TYPE_CHECKING:  # torch and diffusers log while they are imported: after `logging.configure`
    from workers.engine.engine import Engine

logger = structlog.get_logger("workers")

CONFIGURATION_WRONG = 2


class Worker:
    """One worker process, from loading the models to its end."""

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
                fall_back="worker_metrics_port" not in settings.model_fields_set,
            )
        except OSError as error:
            raise ConfigurationError(
                f"IMAGEPROMPT_WORKER_METRICS_PORT {settings.worker_metrics_port} cannot be used on "
                f"IMAGEPROMPT_HOST {settings.host}: {error.strerror}"
            ) from None

    def run(self) -> None:
        """Load, warm up, run jobs until stopped. `ConfigurationError` comes before any job runs."""
        settings = self._settings
        redis = connect(settings.redis_url.get_secret_value())
        storage = Storage.from_settings(settings)
        with suppress(RedisError):  # it is waited for below
            redis_server.check(redis)
        catalog = load_catalog(settings.models)
        pictures = PictureEncoder.from_settings(settings, catalog)
        engine = self._load(catalog, redis)
        transitions = Transitions(
            redis,
            retention_seconds=settings.job_retention_seconds,
            tombstone_seconds=settings.tombstone_seconds,
            max_attempts=settings.max_attempts,
            on_end=self._metrics.ends.count,
        )
        wait_for("Redis", partial(redis_server.check, redis), RedisError)
        wait_for("storage", storage.check, StorageError)
        progress = ProgressWriter(redis, transitions)
        shared = Collaborators(
            redis=redis,
            storage=storage,
            transitions=transitions,
            submit=engine.submit,
            eligibility=Eligibility(redis, engine.serves, engine.models),
            progress=progress,
            quarantine=Quarantine(),
            metrics=self._metrics,
            worker_name=self._name,
            max_attempts=settings.max_attempts,
            pictures=pictures,
        )
        consumer: Consumer = wait_for(
            "Redis",
            lambda: Consumer(
                redis,
                settings.queue,
                name=self._name,
                task=lambda job_id, abort: generate(job_id, shared, abort=abort),
                accepting=lambda: engine.alive,
                transitions=transitions,
                slots=settings.worker_slots,
                lease_seconds=settings.lease_seconds,
            ),
            RedisError,
        )
        self._metrics.running_jobs.set_function(lambda: len(consumer.held))
        self._metrics.ready.set_function(lambda: float(self._is_ready()))
        watchdog = Watchdog(engine, step_timeout_seconds=settings.step_timeout_seconds)
        self._watchdog, self._ready = watchdog, True
        heartbeat = partial(self._heartbeat, redis, consumer, engine)
        threads = [
            PeriodicThread("heartbeat", heartbeat, self._heartbeat_seconds()),
            PeriodicThread("lease reaper", LeaseReaper(consumer.leases), REAP_SECONDS),
            PeriodicThread("watchdog", watchdog, CHECK_SECONDS),
        ]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: consumer.stop())
        for thread in (progress, *threads):
            thread.start()
        logger.info(
            "worker ready",
            name=self._name,
            models=sorted(engine.models),
            metrics_port=self._health.port,
        )
        try:
            wait_for("Redis", heartbeat, RedisError)
            consumer.work_until_stopped(settings.drain_seconds)
        finally:
            self._ready = False
            for thread in threads:
                thread.close()
            progress.close()
            self._unregister(redis)
            engine.stop()
            self._health.close()
        logger.info("worker ended", name=self._name)

    def _load(self, catalog: Catalog, redis: Redis) -> "Engine":
        from workers.engine.engine import load_engine  # noqa: PLC0415  see above

        settings, began = self._settings, time.monotonic()
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
        # A full collection of what stays anyway would hold every thread up for some 0.2 s.
        gc.collect()
        gc.freeze()
        logging.mute_library_warnings("diffusers", "transformers")
        watch_memory(self._metrics, engine.device)
        logger.info("engine warm", seconds=round(time.monotonic() - began, 2), device=engine.device)
        return engine

    def _heartbeat(self, redis: Redis, consumer: Consumer, engine: "Engine") -> None:
        consumer.heartbeat()
        worker_registry.register(
            redis,
            worker_registry.WorkerInfo(
                name=self._name,
                ready=self._is_ready(),
                models=tuple(engine.models),
                device=engine.device,
                slots=self._settings.worker_slots,
                running=len(consumer.held),
                row_steps_per_second=engine.row_steps_per_second,
            ),
        )

    def _heartbeat_seconds(self) -> float:
        return min(self._settings.lease_seconds / 4, worker_registry.TTL_SECONDS / 5)

    def _is_ready(self) -> bool:
        return self._ready and self._watchdog is not None and self._watchdog.healthy()

    def _unregister(self, redis: Redis) -> None:
        try:
            worker_registry.unregister(redis, self._name)
        except RedisError as error:
            logger.warning(
                "worker not removed from the registry", cause=redis_server.explain(error)
            )


def wait_for(what: str, action: Callable[[], Any], errors: type[Exception]) -> Any:
    """Call `action` until it succeeds and return its result; each failure is a log line."""
    return retry.with_backoff(
        action,
        errors,
        interrupt=Event(),
        on_error=lambda error: logger.warning(
            "no answer; retrying",
            service=what,
            cause=redis_server.explain(error) if isinstance(error, RedisError) else str(error),
        ),
    )


def main() -> None:
    """Run one worker. Exit status 0 after a signal, 2 where the configuration is wrong."""
    logging.configure()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        settings = load_settings()
        logging.configure(settings.log_level, settings.log_format)
        tracing.configure("imageprompt-worker")
        if unknown := unknown_variables():
            logger.warning("unknown settings are ignored", variables=unknown)
        Worker(settings).run()
    except ConfigurationError as error:
        logger.critical("configuration is wrong", cause=str(error))
        sys.exit(CONFIGURATION_WRONG)


if __name__ == "__main__":
    main()
