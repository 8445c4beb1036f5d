"""Wraps every request: its id, log line, metrics, security headers and graceful shutdown.

An exception that no handler knows becomes a 500 without its text.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Final

import structlog
from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import problems
from service.core import tracing
from service.core.errors import Stopping
from service.core.metrics import ApiMetrics

CLIENT_GONE: Final = 499
"""In logs and metrics: the client disconnected before it was answered."""
AFTER_BODIES_SECONDS: Final = 10
"""After the shutdown period for bodies: time to store what was received and to answer."""
RETRY_SECONDS: Final = 5
"""By then another process answers, or this one again."""

CONTENT_SECURITY_POLICY: Final = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'"
_DEFAULT_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"cache-control", b"no-store"),
)
"""Of every response that says nothing else."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class GracefulShutdown:
    """Limits how long request bodies may take once `stopping` is set."""

    def __init__(self, stopping: asyncio.Event, seconds: float) -> None:
        self._stopping = stopping
        self._seconds = seconds
        self._end: float | None = None
        self._limits: set[asyncio.Timeout] = set()

    async def watch(self) -> None:
        """Wait for `stopping`, then give all bodies in progress their deadline."""
        await self._stopping.wait()
        self._end = asyncio.get_running_loop().time() + self._seconds
        for limit in self._limits:
            limit.reschedule(self._end)

    async def receive(self, receive: Receive) -> Message:
        """The next message of a request. Raises `Stopping` after the deadline."""
        limit = asyncio.timeout_at(self._end)
        try:
            async with limit:
                self._limits.add(limit)
                return await receive()
        except TimeoutError:
            raise Stopping(retry_after_seconds=RETRY_SECONDS) from None
        finally:
            self._limits.discard(limit)


class RequestMiddleware:
    """Pure ASGI middleware, so that streams pass through unbuffered and in the same task."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: ApiMetrics,
        shutdown: GracefulShutdown,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._shutdown = shutdown
        self._clock = clock
        self._counted: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        """By route, method and status class."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP is passed through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        started = self._clock()
        status = CLIENT_GONE

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = {name for name, _ in message["headers"]}
                defaults = [one for one in _DEFAULT_HEADERS if one[0] not in sent]
                own = (b"x-request-id", request_id.encode())
                message["headers"] = [*message["headers"], *defaults, own]
            await send(message)

        async def receive_in_time() -> Message:
            # A response that has started is not interrupted: only request bodies have a deadline.
            return await (self._shutdown.receive(receive) if status == CLIENT_GONE else receive())

        traceparent = tracing.carried(Headers(scope=scope))
        ids = {"request_id": request_id} | tracing.log_fields(traceparent)
        before = structlog.contextvars.bind_contextvars(**ids)
        try:
            await self._app(scope, receive_in_time, send_with_headers)
        except ClientDisconnect:
            status = CLIENT_GONE
        except (Exception, asyncio.CancelledError) as error:
            answer = _failure(error, request_id)
            if status == CLIENT_GONE:
                await answer(scope, receive, send_with_headers)
            status = answer.status_code
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._record(scope, status, self._clock() - started)
            structlog.contextvars.reset_contextvars(**before)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        key = (route, method, status // 100)
        if key not in self._counted:
            self._counted[key] = (
                self._metrics.requests.labels(route, method, f"{status // 100}xx"),
                self._metrics.request_seconds.labels(route, method),
            )
        requests, request_seconds = self._counted[key]
        requests.inc()
        request_seconds.observe(seconds)
        if logging.getLogger(__name__).isEnabledFor(logging.INFO):  # most of a line's cost
            log.info(
                "request", route=route, method=method, status=status, seconds=round(seconds, 4)
            )


class HeadMiddleware:
    """Serves HEAD by the handler of GET, without the body (RFC 9110, section 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        ended = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
            elif not ended.is_set():
                ended.set()
                await send({"type": "http.response.body"})

        async def receive_until_ended() -> Message:
            if ended.is_set():
                return {"type": "http.disconnect"}
            receiving = asyncio.ensure_future(receive())
            ending = asyncio.ensure_future(ended.wait())
            try:
                await asyncio.wait((receiving, ending), return_when=asyncio.FIRST_COMPLETED)
                return receiving.result() if receiving.done() else {"type": "http.disconnect"}
            finally:
                receiving.cancel()
                ending.cancel()

        # A copy: the server itself needs the method. What the router adds, the log needs.
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive_until_ended, send_head)
        finally:
            scope["route"] = inner.get("route")


def _new_id() -> str:
    """A random UUID (RFC 9562, version 4), at a third of what the standard library's takes."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    parts = (digits[:8], digits[8:12], f"4{digits[13:16]}", f"{variant}{digits[17:20]}")
    return f"urn:uuid:{'-'.join(parts)}-{digits[20:]}"


def _failure(error: BaseException, request_id: str) -> Response:
    if isinstance(error, asyncio.CancelledError):  # the server's own shutdown period has ended, too
        return problems.respond_stopping(request_id)
    log.error("request failed", exc_info=error)
    return problems.respond_internal(request_id)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
