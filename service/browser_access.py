"""Keeps web pages of others from using a service that needs no API key.

While callers are anonymous, every page that a user opens could send requests to a local service,
and a DNS name that is rebound to its address could read the responses. Requests with a key are not
affected: a page of another site does not have it.
"""

import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from service.core.errors import Forbidden
from service.core.settings import Settings

_LOCAL_SUFFIXES: Final = (".localhost", ".local", ".internal", ".home.arpa")
"""No public name server answers for these (RFC 6761, 6762, 8375; ICANN's .internal)."""

CORS_REQUEST_HEADERS: Final = (
    "Authorization",
    "X-API-Key",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "traceparent",
)
"""What pages of allowed origins may send, beside what every page may."""
CORS_RESPONSE_HEADERS: Final = (
    "Location",
    "Retry-After",
    "X-Job-Id",
    "X-Seed",
    "RateLimit",
    "RateLimit-Policy",
    "Content-Disposition",
    "ETag",
    "Idempotency-Replayed",
    "Preference-Applied",
    "X-Request-Id",
)
"""What pages of allowed origins may read, beside what every page may."""


class BrowserAccess:
    """Decides by `Host`, `Origin` (or `Referer`) and `Sec-Fetch-Site` who may act anonymously."""

    def __init__(self, settings: Settings) -> None:
        self._origins = frozenset(settings.cors_origins)
        self._hosts = {_name(settings.host), *map(_name, settings.allowed_hosts)}
        if settings.public_url is not None:
            self._hosts.add(_name(urlsplit(settings.public_url).netloc))

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises `Forbidden`."""
        host = headers.get("host", "")
        if not self._is_known(_name(host)):
            raise Forbidden(
                "Without an API key the service is not used by this host name; use its address or "
                "localhost, or let the operator add the name to IMAGEPROMPT_ALLOWED_HOSTS"
            )
        origin = headers.get("origin")
        # An <img> sends no origin, but a referrer, which no page can forge.
        if (origin or _origin(headers.get("referer", ""))) in self._origins:
            return
        site = headers.get("sec-fetch-site")
        if site == "cross-site" or (
            site is None and origin is not None and not _same(origin, host)
        ):
            raise Forbidden(
                "Without an API key a web page of another site may not use the service; send a "
                "key, or let the operator add the page's origin to IMAGEPROMPT_CORS_ORIGINS"
            )

    def _is_known(self, name: str) -> bool:
        if name in self._hosts or "." not in name or name.endswith(_LOCAL_SUFFIXES):
            return True  # a name without a dot is none of the public DNS
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # an address cannot be rebound


def _name(host: str) -> str:
    """The name of a `Host` header, without its port and the brackets of an address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name = host.partition(":")[0] if host.count(":") == 1 else host
    return name.rstrip(".").lower()


def _origin(url: str) -> str:
    """The origin of a URL, as browsers write it; empty for what is no URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc}".lower()


def _same(origin: str, host: str) -> bool:
    """Whether an origin is that of a host; its scheme may have been changed by a proxy."""
    return _origin(origin).partition("://")[2] == host.lower()
