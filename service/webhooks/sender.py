"""Sends one webhook once: signed (Standard Webhooks 1.0), over TLS, to a checked address.

It knows nothing of jobs, and does not try again; that is the work of `delivery.py`.
"""

import asyncio
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Final

import httpx
import structlog
from standardwebhooks.webhooks import Webhook

from service.webhooks.lookup import Lookups, LookupsBusy
from service.webhooks.url_policy import AddressRefused, Network, resolve

TIMEOUT_SECONDS: Final = 15.0
"""For all of it: name, connection, TLS and answer."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Outcome(StrEnum):
    """What became of a delivery."""

    DELIVERED = "delivered"
    GONE = "gone"
    """The receiver wants no more (410)."""
    FAILED = "failed"
    BUSY = "busy"
    """Not sent: too many names are being looked up at the moment."""


class Sender:
    """Sends webhooks. Redirects are not followed, proxies of the environment not used."""

    def __init__(
        self,
        networks: Sequence[Network],
        *,
        tls: ssl.SSLContext | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._networks = networks
        self._timeout_seconds = timeout_seconds
        self._lookups = Lookups()
        self._client = httpx.AsyncClient(
            verify=tls or ssl.create_default_context(),
            follow_redirects=False,
            trust_env=False,
            timeout=timeout_seconds,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def send(self, url: str, message_id: str, body: str, secret: str) -> Outcome:
        """Send `body` (JSON) once; never raises for what the receiver does."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                status = await self._post(url, message_id, body, secret)
        except LookupsBusy:
            return Outcome.BUSY
        except (AddressRefused, httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            # ValueError: of a name that nothing could be called by, as one with an empty label.
            log.info("a webhook failed", message_id=message_id, cause=type(error).__name__)
            return Outcome.FAILED
        if status == HTTPStatus.GONE:
            return Outcome.GONE
        if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            return Outcome.DELIVERED
        log.info("a webhook was refused", message_id=message_id, status=status)
        return Outcome.FAILED

    async def _post(self, url: str, message_id: str, body: str, secret: str) -> int:
        target = httpx.URL(url)
        if target.scheme != "https":
            raise AddressRefused("only https is sent to")
        # As on the wire: `target.host` is Unicode, which sockets and TLS encode by an older IDNA.
        name = target.raw_host.decode("ascii")
        address = await resolve(name, self._networks, self._lookups)
        now = datetime.now(UTC)
        # The connection goes to the address that was checked; TLS and Host keep the name.
        request = self._client.build_request(
            "POST",
            target.copy_with(host=address),
            content=body.encode(),
            headers={
                "Host": target.netloc.decode().rpartition("@")[2],
                "Content-Type": "application/json",
                "User-Agent": "imageprompt",
                "webhook-id": message_id,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": Webhook(secret).sign(message_id, now, body),
            },
            extensions={"sni_hostname": name},
        )
        answer = await self._client.send(request, stream=True)
        await answer.aclose()  # its body is not read, however long it may be
        return answer.status_code
