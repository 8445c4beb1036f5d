"""`python -m service`: runs the API process, configured by environment variables only."""

import asyncio
import gc
import signal
import sys
from functools import partial

import structlog
import uvloop
from redis.exceptions import RedisError

from service import supervisor
from service.api_keys import is_loopback
from service.app import Side, create_app
from service.core import logging, malloc, redis_server, tracing
from service.core.catalog import load_catalog
from service.core.errors import ConfigurationError
from service.core.metrics import ApiMetrics
from service.core.queue import connect
from service.core.settings import Settings, load_settings, unknown_variables
from service.server import (
    Server,
    connection_capacity,
    listen_publicly_after_first_key,
    may_listen_publicly,
)

USAGE_ERROR = 2
ADMIN_CONNECTIONS = 64
"""On the port of docs, metrics and health."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("service")


def _servers(
    settings: Settings, stopping: asyncio.Event, *, loopback_only: bool, shares_port: bool
) -> list[Server]:
    metrics = ApiMetrics()
    capacity = connection_capacity(settings.max_connections + ADMIN_CONNECTIONS)
    server = partial(
        Server,
        loopback_only=loopback_only,
        shares_port=shares_port,
        grace_seconds=settings.grace_seconds,
        proxies=settings.trusted_proxies,
    )
    if settings.admin_port is None:
        app = create_app(settings, stopping, metrics=metrics)
        return [server(app, settings.host, settings.port, max_connections=capacity)]
    clients = create_app(settings, stopping, side=Side.PUBLIC, metrics=metrics)
    operators = create_app(settings, stopping, side=Side.ADMIN, metrics=metrics)
    return [
        server(
            clients,
            settings.host,
            settings.port,
            max_connections=max(1, capacity - ADMIN_CONNECTIONS),
        ),
        server(
            operators,
            settings.admin_host,
            settings.admin_port,
            max_connections=ADMIN_CONNECTIONS,
        ),
    ]


async def _serve(settings: Settings, *, shares_port: bool) -> bool:
    """Serve until SIGTERM or SIGINT. Returns whether the servers could listen."""
    stopping = asyncio.Event()
    loopback_only = not await may_listen_publicly(settings)
    servers = _servers(settings, stopping, loopback_only=loopback_only, shares_port=shares_port)
    listening = True

    def stop() -> None:
        second_signal = stopping.is_set()
        stopping.set()
        for server in servers:
            server.should_exit = True
            server.force_exit = second_signal

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)

    async def serve(server: Server) -> None:
        await server.serve()
        if not stopping.is_set():
            stop()  # where one server cannot start, the other stops too

    async def listen_publicly() -> None:
        nonlocal listening
        try:
            await listen_publicly_after_first_key(settings, servers)
        except OSError as error:
            log.error("cannot listen", cause=str(error))  # noqa: TRY400 - the message is complete
            listening = False
            stop()

    # A full collection of what stays anyway would hold every request up for 20 to 40 ms.
    gc.collect()
    gc.freeze()
    opening = asyncio.create_task(listen_publicly()) if loopback_only else None
    await asyncio.gather(*(serve(server) for server in servers))
    if opening is not None:
        opening.cancel()
    return listening and all(server.started for server in servers)


def _check_redis(settings: Settings) -> None:
    """Raises `ConfigurationError` for a Redis that cannot serve; one that is down may come."""
    redis = connect(settings.redis_url.get_secret_value())
    try:
        redis_server.check(redis)
    except RedisError as error:
        log.warning("Redis is not available yet", cause=redis_server.explain(error))
    finally:
        redis.close()


def main() -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    malloc.trim_freed()
    logging.configure()
    try:
        settings = load_settings()
        logging.configure(settings.log_level, settings.log_format)
        load_catalog(settings.models)
        tracing.configure("imageprompt-api")
        _check_redis(settings)
    except ConfigurationError as error:
        log.error("cannot start", cause=str(error))  # noqa: TRY400 - the message is complete
        return USAGE_ERROR
    shares_port = supervisor.SHARED_PORT in sys.argv[1:]
    if unknown := unknown_variables():
        log.warning("unknown settings are ignored", variables=unknown)
    if settings.api_processes > 1 and not shares_port:
        return supervisor.run(settings)
    log.info("starting", host=settings.host, port=settings.port)
    if is_loopback(settings.host):
        log.info("only this machine can reach the service; no API key is needed while none exists")
    elif settings.allow_anonymous:
        log.warning(
            "IMAGEPROMPT_ALLOW_ANONYMOUS is set: every client that can connect may use the service"
        )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return 0 if runner.run(_serve(settings, shares_port=shares_port)) else 1


if __name__ == "__main__":
    sys.exit(main())
