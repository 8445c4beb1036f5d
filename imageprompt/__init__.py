"""The Python client of the service: `Client`, `AsyncClient` and `verify_webhook`.

It needs httpx and standardwebhooks alone, not the server's dependencies.
"""

from imageprompt.aio import AsyncClient
from imageprompt.client import Client
from imageprompt.errors import ApiError, ClientError, JobFailed, Unavailable
from imageprompt.types import Event, Job, Picture
from imageprompt.webhooks import WebhookVerificationError, verify_webhook

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "ClientError",
    "Event",
    "Job",
    "JobFailed",
    "Picture",
    "Unavailable",
    "WebhookVerificationError",
    "verify_webhook",
]
