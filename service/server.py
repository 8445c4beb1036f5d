"""Where the API listens: at loopback alone while it knows of no API key, else where it is told.

It knows no requests; who may send them is decided in `service/gate.py`.
"""

import asyncio
import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Final

import redis.asyncio as aioredis
import structlog
import uvicorn
from fastapi import FastAPI
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.core import redis_keys
from service.core.settings import Settings
from service.gate import anonymous_allowed
from service.grace import AFTERWARDS_SECONDS

LOOPBACK: Final = "127.0.0.1"
MAX_HEADERS_BYTES: Final = 2**16
LOOK_SECONDS: Final = 2.0
"""How often Redis is asked for the first key, and how long it may take to answer."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class BoundedHeaders(HttpToolsProtocol):
    """Answers 400 to a request whose headers are too long; uvicorn itself sets no bound."""

    _open_bytes: int | None = None
    """Of the headers that have not ended yet."""

    def on_message_begin(self) -> None:
        """Count from here."""
        super().on_message_begin()
        self._open_bytes = 0

    def on_headers_complete(self) -> None:
        """Count no more."""
        self._open_bytes = None
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Take bytes in."""
        super().data_received(data)
        if self._open_bytes is not None:
            self._open_bytes += len(data)
            if self._open_bytes > MAX_HEADERS_BYTES and not self.transport.is_closing():
                self.send_400_response("The request's headers are too long.")


class Server(uvicorn.Server):
    """Listens at `host`; a closed one at loopback until it is opened.

    The process listens to signals for it.
    """

    def __init__(
        self, app: FastAPI, host: str, port: int, *, closed: bool, grace_seconds: float
    ) -> None:
        self._host = host
        config = uvicorn.Config(
            app,
            host=LOOPBACK if closed else host,
            port=port,
            http=BoundedHeaders,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=math.ceil(grace_seconds + AFTERWARDS_SECONDS),
        )
        super().__init__(config)

    async def open(self) -> None:
        """Listen at `host` instead of loopback; who is connected stays so. Raises `OSError`."""
        for listener in self.servers:
            listener.close()  # first: the host may be all addresses, loopback among them
        listener = await asyncio.get_running_loop().create_server(
            self._protocol, host=self._host, port=self.config.port, backlog=self.config.backlog
        )
        self.servers = [listener]

    def _protocol(self) -> asyncio.Protocol:
        """What uvicorn makes of a connection; as in its `Server.startup`."""
        return self.config.http_protocol_class(  # type: ignore[call-arg]  # it is typed as any protocol's
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


async def may_open(settings: Settings) -> bool:
    """Whether other machines may connect: a key is stored, or the operator wants none."""
    if anonymous_allowed(settings):
        return True
    client = aioredis.Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_connect_timeout=LOOK_SECONDS,
        socket_timeout=LOOK_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        return bool(await client.exists(redis_keys.API_KEYS))
    except RedisError:
        return False
    finally:
        await client.aclose()


async def open_with_first_key(settings: Settings, servers: Sequence[Server]) -> None:
    """Open closed servers as soon as there is an API key. Raises `OSError`."""
    log.warning(
        "listening on 127.0.0.1 only, because no API key is stored or Redis does not answer; "
        "make one with `imageprompt keys create NAME`, and others can connect within seconds",
        host=settings.host,
    )
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if all(server.started for server in servers) and await may_open(settings):
            break
    for server in servers:
        await server.open()
    log.info("there is an API key: others can connect", host=settings.host, port=settings.port)
