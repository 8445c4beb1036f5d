"""What surrounds every request: its id, its log line, its metrics and the security headers.

It knows nothing of what the routes do. Whatever escapes them becomes a 500 without its text.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import problems
from service.core import tracing
from service.core.metrics import ApiMetrics
from service.grace import Grace

CLIENT_GONE: Final = 499
"""Stands in logs and metrics for a client that hung up before it was answered."""

CONTENT_SECURITY_POLICY: Final = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class RequestContext:
    """Pure ASGI middleware, so that streams pass through it and no task is put in between."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: ApiMetrics,
        grace: Grace,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._grace = grace
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP passes untouched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"urn:uuid:{uuid.uuid4()}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = self._clock()
        status = CLIENT_GONE

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in scope["state"].get("extra_headers", {}).items():
                    headers[name] = value
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("X-Frame-Options", "DENY")
                headers.setdefault("Referrer-Policy", "no-referrer")
                headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        async def receive_in_time() -> Message:
            # An answer that has begun is not broken off: only what it waits for may be late.
            return await (self._grace.receive(receive) if status == CLIENT_GONE else receive())

        traceparent = tracing.carried(Headers(scope=scope))
        ids = {"request_id": request_id} | tracing.log_fields(traceparent)
        with structlog.contextvars.bound_contextvars(**ids):
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

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, f"{status // 100}xx").inc()
        self._metrics.request_seconds.labels(route, method).observe(seconds)
        log.info("request", route=route, method=method, status=status, seconds=round(seconds, 4))


def _failure(error: BaseException, request_id: str) -> Response:
    if isinstance(error, asyncio.CancelledError):  # the server's own grace is over as well
        return problems.respond_stopping(request_id)
    log.error("a request failed", exc_info=error)
    return problems.respond_internal(request_id)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
