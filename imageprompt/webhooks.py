"""Checks that a webhook comes from the service (Standard Webhooks 1.0)."""

from collections.abc import Mapping
from typing import Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from imageprompt.types import Job

__all__ = ["WebhookVerificationError", "verify_webhook"]


def verify_webhook(body: bytes | str, headers: Mapping[str, str], secret: str) -> Job:
    """Check the signature and age of a webhook and return the job that it reports.

    `body` is the request's body as it came in, `secret` the `webhook_secret` of the API key.
    Raises `WebhookVerificationError` where the signature is wrong or older than five minutes.
    """
    names = {name.lower(): value for name, value in headers.items()}
    text = body if isinstance(body, str) else body.decode()
    payload: Any = Webhook(secret).verify(text, names)
    return Job.from_json(payload["data"])
