"""Sends one webhook once: signed (Standard Webhooks 1.0), over TLS, to a checked address.

Retries are in `delivery.py`.
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

from service.webhooks.bounded_transport import BoundedTransport
from service.webhooks.url_policy import (
    AddressRefused,
    Network,
    Resolver,
    TooManyLookups,
    resolve,
)

TIMEOUT_SECONDS: Final = 15.0
"""For the whole attempt: name lookup, connection, TLS and response."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class DeliveryOutcome(StrEnum):
    """How one attempt to deliver ended."""

    DELIVERED = "delivered"
    GONE = "gone"
    """The receiver asked for no further attempts (410)."""
    FAILED = "failed"
    DEFERRED = "deferred"
    """Not sent, because too many names are being resolved at the moment."""


class Sender:
    """Sends webhooks. Redirects are not followed; proxies of the environment are not used."""

    def __init__(
        self,
        networks: Sequence[Network],
        *,
        tls: ssl.SSLContext | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._networks = networks
        self._timeout_seconds = timeout_seconds
        self._resolver = Resolver()
        self._client = httpx.AsyncClient(
            transport=BoundedTransport(tls or ssl.create_default_context()),
            follow_redirects=False,
            trust_env=False,
            timeout=timeout_seconds,  # of each operation; `send` bounds the whole attempt
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def send(
        self, url: str, message_id: str, body: str, secret: str, *, owner: str
    ) -> DeliveryOutcome:
        """Send `body` (JSON) once; never raises for what the receiver does.

        Lookups of names are shared fairly between owners.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                status = await self._post(url, message_id, body, secret, owner)
        except TooManyLookups:
            return DeliveryOutcome.DEFERRED
        except (AddressRefused, httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            # ValueError: a name that cannot exist, such as one with an empty label.
            log.info("a webhook failed", message_id=message_id, cause=type(error).__name__)
            return DeliveryOutcome.FAILED
        if status == HTTPStatus.GONE:
            return DeliveryOutcome.GONE
        if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            return DeliveryOutcome.DELIVERED
        log.info("a webhook was refused", message_id=message_id, status=status)
        return DeliveryOutcome.FAILED

    async def _post(self, url: str, message_id: str, body: str, secret: str, owner: str) -> int:
        target = httpx.URL(url)
        if target.scheme != "https":
            raise AddressRefused("only https URLs are called")
        # As on the wire: `target.host` is Unicode, which sockets and TLS would encode by IDNA 2003.
        name = target.raw_host.decode("ascii")
        address = await resolve(name, self._networks, self._resolver, owner=owner)
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
        response = await self._client.send(request)
        return response.status_code
