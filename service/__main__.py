"""`python -m service`: the API on its own, configured by the environment only."""

import asyncio
import sys
from types import FrameType

import structlog
import uvicorn

from service.app import create_app
from service.core import logs
from service.core.settings import load_settings

GRACE_SECONDS = 20
"""How long requests in flight may go on after SIGTERM."""


class Server(uvicorn.Server):
    """Lets open streams end as soon as the process is told to."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called on SIGTERM and SIGINT."""
        self._stopping.set()
        super().handle_exit(sig, frame)


def main() -> int:
    """Serve until a signal comes; the exit status."""
    settings = load_settings()
    logs.configure(settings.log_level, settings.log_format)
    log: structlog.stdlib.BoundLogger = structlog.get_logger("service")
    stopping = asyncio.Event()
    config = uvicorn.Config(
        create_app(settings, stopping),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    log.info("starting", host=settings.host, port=settings.port)
    server = Server(config, stopping)
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
