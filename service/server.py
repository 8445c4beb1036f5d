"""The HTTP server: on loopback only until an API key exists, then on the configured host."""

import asyncio
import contextlib
import math
import resource
import socket
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import redis.asyncio as aioredis
import structlog
import uvicorn
from fastapi import FastAPI
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.api_keys import anonymous_allowed, bootstrap_record
from service.connections import Connections, HttpLimits
from service.core import redis_keys
from service.core.settings import Settings
from service.http_protocol import HttpProtocol
from service.middleware import AFTER_BODIES_SECONDS
from service.public_url import Network

LOOPBACK: Final = "127.0.0.1"
ACCEPT_BACKLOG: Final = 256
RESERVED_FILES: Final = 256
"""File descriptors for Redis, temporary files and name lookups."""
MAX_FILES: Final = 2**16
SILENT_PEER_SECONDS: Final = 60
"""After this a peer that does not acknowledge what was sent, or a keep-alive probe, is gone."""
FIRST_KEY_POLL_SECONDS: Final = 2.0
"""How often Redis is polled for the first key, and how long it may take to answer."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Server(uvicorn.Server):
    """Serves one application on `host`, or on loopback until `listen_publicly` is called.

    Signals are handled by the process (`service/__main__.py`).
    """

    def __init__(
        self,
        app: FastAPI,
        host: str,
        port: int,
        *,
        loopback_only: bool,
        shares_port: bool = False,
        grace_seconds: float,
        max_connections: int,
        proxies: Sequence[Network] = (),
        limits: HttpLimits = HttpLimits(),  # noqa: B008  frozen
    ) -> None:
        self._host = host
        self._shares_port = shares_port
        protocol = partial(
            HttpProtocol,
            limits=limits,
            open_connections=Connections(
                max_connections, max(1, max_connections // 2), proxies=proxies
            ),
        )
        config = uvicorn.Config(
            app,
            host=LOOPBACK if loopback_only else host,
            port=port,
            http=protocol,  # type: ignore[arg-type]  # it is called only
            ws="none",
            backlog=ACCEPT_BACKLOG,
            log_config=None,
            access_log=False,
            proxy_headers=False,  # `service.public_url` reads them
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=math.ceil(grace_seconds + AFTER_BODIES_SECONDS),
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        if not self._shares_port:
            await super().startup(sockets)
        else:
            await super().startup([])  # it has no option for a port that is shared
            await self._listen(self.config.host)
        if self.started:
            _detect_silent_peers(self.servers)

    async def listen_publicly(self) -> None:
        """Listen on `host` instead of loopback; open connections stay open. Raises `OSError`."""
        for listener in self.servers:
            listener.close()  # first: `host` may be all addresses, loopback among them
        await self._listen(self._host)
        _detect_silent_peers(self.servers)

    async def _listen(self, host: str) -> None:
        listener = await asyncio.get_running_loop().create_server(
            self._protocol,
            host=host,
            port=self.config.port,
            backlog=self.config.backlog,
            reuse_port=self._shares_port or None,
        )
        self.servers = [listener]

    def _protocol(self) -> asyncio.Protocol:
        """The protocol of one connection, made as in uvicorn's `Server.startup`."""
        return self.config.http_protocol_class(  # type: ignore[call-arg]  # it is typed as any protocol's
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield


def _detect_silent_peers(listeners: Sequence[asyncio.base_events.Server]) -> None:
    """Let the kernel end connections to peers that are gone; accepted sockets inherit it."""
    for listener in listeners:
        for listening in listener.sockets:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (
                ("TCP_KEEPIDLE", SILENT_PEER_SECONDS // 2),
                ("TCP_KEEPINTVL", SILENT_PEER_SECONDS // 6),
                ("TCP_KEEPCNT", 3),
                ("TCP_USER_TIMEOUT", SILENT_PEER_SECONDS * 1000),
            ):
                if hasattr(socket, name):  # Linux has all of them
                    listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def connection_capacity(wanted: int) -> int:
    """How many connections this process may hold: `wanted`, or what its file limit allows.

    Raises the soft limit of open files as far as that needs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + ACCEPT_BACKLOG + RESERVED_FILES
    if soft < needed and soft != resource.RLIM_INFINITY:
        soft = min(needed, MAX_FILES) if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    capacity = max(1, soft - ACCEPT_BACKLOG - RESERVED_FILES)
    log.warning(
        "fewer connections than IMAGEPROMPT_MAX_CONNECTIONS are served, because the limit of open "
        "files is too low; raise it (ulimit -n, LimitNOFILE)",
        connections=capacity,
        open_files=soft,
    )
    return capacity


async def may_listen_publicly(settings: Settings) -> bool:
    """Whether other machines may connect: an API key exists or is demanded, or none is needed."""
    bootstrap = settings.bootstrap_key
    if bootstrap is None and (settings.require_api_keys or anonymous_allowed(settings)):
        return True
    client = aioredis.Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_connect_timeout=FIRST_KEY_POLL_SECONDS,
        socket_timeout=FIRST_KEY_POLL_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        if bootstrap is not None:
            record = bootstrap_record(bootstrap.get_secret_value(), now=time.time())
            # Not over what is there: several replicas start at once.
            await client.hsetnx(redis_keys.API_KEYS, record.id, record.model_dump_json())
            await client.delete(redis_keys.API_KEYS_REVOKED)
        return bool(await client.exists(redis_keys.API_KEYS))
    except RedisError:
        return False
    finally:
        await client.aclose()


async def listen_publicly_after_first_key(settings: Settings, servers: Sequence[Server]) -> None:
    """Listen on the configured host as soon as an API key exists. Raises `OSError`."""
    log.warning(
        "listening on 127.0.0.1 only, because no API key exists or Redis does not answer; after "
        "`imageprompt keys create NAME` other machines can connect within seconds",
        host=settings.host,
    )
    while True:
        await asyncio.sleep(FIRST_KEY_POLL_SECONDS)
        if all(server.started for server in servers) and await may_listen_publicly(settings):
            break
    for server in servers:
        await server.listen_publicly()
    log.info(
        "an API key exists: other machines can connect", host=settings.host, port=settings.port
    )
