"""Sends one webhook once: signed (Standard Webhooks 1.0), over TLS, to a checked address.

Retries are in `delivery.py`.
"""

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Final

import structlog
from standardwebhooks.webhooks import Webhook

from service.webhooks.bounded_transport import CheckedClient, RequestFailed
from service.webhooks.url_policy import Network, TooManyLookups

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
    """Sends webhooks."""

    def __init__(
        self,
        networks: Sequence[Network],
        *,
        tls: ssl.SSLContext | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._client = CheckedClient(networks, tls=tls, timeout_seconds=timeout_seconds)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def send(
        self, url: str, message_id: str, body: str, secret: str, *, owner: str
    ) -> DeliveryOutcome:
        """Send `body` (JSON) once; never raises for what the receiver does.

        Lookups of names are shared fairly between owners.
        """
        now = datetime.now(UTC)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign(message_id, now, body),
        }
        try:
            response = await self._client.send(
                "POST", url, owner=owner, headers=headers, content=body.encode()
            )
        except TooManyLookups:
            return DeliveryOutcome.DEFERRED
        except RequestFailed as error:
            log.info("a webhook failed", message_id=message_id, cause=str(error))
            return DeliveryOutcome.FAILED
        status = response.status_code
        if status == HTTPStatus.GONE:
            return DeliveryOutcome.GONE
        if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            return DeliveryOutcome.DELIVERED
        log.info("a webhook was refused", message_id=message_id, status=status)
        return DeliveryOutcome.FAILED
