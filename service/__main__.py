"""`python -m service`: the API on its own, configured by the environment only."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator

import structlog
import uvicorn
import uvloop
from fastapi import FastAPI

from service.app import Side, create_app
from service.core import logs, tracing
from service.core.catalog import load_catalog
from service.core.errors import ConfigurationError
from service.core.metrics import ApiMetrics
from service.core.settings import Settings, load_settings
from service.gate import anonymous_allowed, is_loopback

GRACE_SECONDS = 20
"""How long requests in flight may go on after SIGTERM."""
WRONG_USE = 2


class Server(uvicorn.Server):
    """A server whose process listens to signals for it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def _server(app: FastAPI, host: str, port: int) -> Server:
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return Server(config)


def _servers(settings: Settings, stopping: asyncio.Event) -> list[Server]:
    metrics = ApiMetrics()
    if settings.admin_port is None:
        app = create_app(settings, stopping, metrics=metrics)
        return [_server(app, settings.host, settings.port)]
    clients = create_app(settings, stopping, side=Side.PUBLIC, metrics=metrics)
    operators = create_app(settings, stopping, side=Side.ADMIN, metrics=metrics)
    return [
        _server(clients, settings.host, settings.port),
        _server(operators, settings.admin_host, settings.admin_port),
    ]


async def _serve(settings: Settings) -> bool:
    """Serve until a signal comes; whether it came to serving."""
    stopping = asyncio.Event()
    servers = _servers(settings, stopping)

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

    await asyncio.gather(*(serve(server) for server in servers))
    return all(server.started for server in servers)


def main() -> int:
    """Serve until a signal comes; the exit status."""
    settings = load_settings()
    logs.configure(settings.log_level, settings.log_format)
    log: structlog.stdlib.BoundLogger = structlog.get_logger("service")
    try:
        load_catalog(settings.models)
        tracing.configure("imageprompt-api")
    except ConfigurationError as error:
        log.error("cannot start", cause=str(error))  # noqa: TRY400 - the message says it all
        return WRONG_USE
    log.info("starting", host=settings.host, port=settings.port)
    if not anonymous_allowed(settings):
        log.warning("without an API key nothing is served here: `imageprompt keys create NAME`")
    elif is_loopback(settings.host):
        log.info("only this machine can reach the service; no key is needed while none is made")
    else:
        log.warning("IMAGEPROMPT_ALLOW_ANONYMOUS is set: anybody who can connect may use this")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return 0 if runner.run(_serve(settings)) else 1


if __name__ == "__main__":
    sys.exit(main())
