"""`python -m service`: the API on its own, configured by the environment only."""

import asyncio
import signal
import sys
from functools import partial

import structlog
import uvloop

from service.app import Side, create_app
from service.core import logging, malloc, tracing
from service.core.catalog import load_catalog
from service.core.errors import ConfigurationError
from service.core.metrics import ApiMetrics
from service.core.settings import Settings, load_settings
from service.gate import is_loopback
from service.server import Server, may_open, open_with_first_key

WRONG_USE = 2

log: structlog.stdlib.BoundLogger = structlog.get_logger("service")


def _servers(settings: Settings, stopping: asyncio.Event, *, closed: bool) -> list[Server]:
    metrics = ApiMetrics()
    listen = partial(Server, closed=closed, grace_seconds=settings.grace_seconds)
    if settings.admin_port is None:
        app = create_app(settings, stopping, metrics=metrics)
        return [listen(app, settings.host, settings.port)]
    clients = create_app(settings, stopping, side=Side.PUBLIC, metrics=metrics)
    operators = create_app(settings, stopping, side=Side.ADMIN, metrics=metrics)
    return [
        listen(clients, settings.host, settings.port),
        listen(operators, settings.admin_host, settings.admin_port),
    ]


async def _serve(settings: Settings) -> bool:
    """Serve until a signal comes; whether it could."""
    stopping = asyncio.Event()
    closed = not await may_open(settings)
    servers = _servers(settings, stopping, closed=closed)
    listening = True

    def stop() -> None:
        again = stopping.is_set()
        stopping.set()
        for server in servers:
            server.should_exit = True
            server.force_exit = again

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)

    async def serve(server: Server) -> None:
        await server.serve()
        if not stopping.is_set():
            stop()  # one that cannot start takes the other with it

    async def open_up() -> None:
        nonlocal listening
        try:
            await open_with_first_key(settings, servers)
        except OSError as error:
            log.error("cannot listen", cause=str(error))  # noqa: TRY400 - the message says it all
            listening = False
            stop()

    opening = asyncio.create_task(open_up()) if closed else None
    await asyncio.gather(*(serve(server) for server in servers))
    if opening is not None:
        opening.cancel()
    return listening and all(server.started for server in servers)


def main() -> int:
    """Serve until a signal comes; the exit status."""
    malloc.give_back()
    settings = load_settings()
    logging.configure(settings.log_level, settings.log_format)
    try:
        load_catalog(settings.models)
        tracing.configure("imageprompt-api")
    except ConfigurationError as error:
        log.error("cannot start", cause=str(error))  # noqa: TRY400 - the message says it all
        return WRONG_USE
    log.info("starting", host=settings.host, port=settings.port)
    if is_loopback(settings.host):
        log.info("only this machine can reach the service; no key is needed while none is made")
    elif settings.allow_anonymous:
        log.warning("IMAGEPROMPT_ALLOW_ANONYMOUS is set: anybody who can connect may use this")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return 0 if runner.run(_serve(settings)) else 1


if __name__ == "__main__":
    sys.exit(main())
