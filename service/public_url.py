"""Where clients reach the service: behind a proxy, on another port, under a sub-path.

The scheme, host, client address and path prefix of a request are set before anything reads them.
Headers of a proxy count only where the connection comes from a network that the operator trusts.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.core.settings import Settings, is_host

_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]{1,64}){1,8}")
_PAIR: Final = re.compile(r'\s*([a-z]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;,"\s]*)\s*', re.IGNORECASE)
_MAX_HOPS: Final = 32

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class _Hop:
    """What one proxy says of the request that it received; `None` where it says nothing."""

    client: str | None = None
    scheme: str | None = None
    host: str | None = None


class ProxyMiddleware:
    """Sets what a request says of its origin from the settings and from trusted proxies."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._trusted = settings.trusted_proxies
        self._public = urlsplit(settings.public_url) if settings.public_url else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] == "http":
            self._set_origin(scope)
        await self._app(scope, receive, send)

    def _set_origin(self, scope: Scope) -> None:
        client = scope.get("client")
        if self._trusted and client is not None and is_within(client[0], self._trusted):
            self._read_proxies(scope, Headers(scope=scope))
        if self._public is not None:
            scope["scheme"] = self._public.scheme
            _set_host(scope, self._public.netloc)
            _set_prefix(scope, self._public.path.rstrip("/"))

    def _read_proxies(self, scope: Scope, headers: Headers) -> None:
        hops = _forwarded(headers) or _x_forwarded(headers)
        # The last hop was written by the proxy at hand. The one before it counts only if that
        # proxy was called by another trusted one.
        for hop in reversed(hops):
            if hop.scheme in ("http", "https"):
                scope["scheme"] = hop.scheme
            if hop.host is not None and is_host(hop.host):
                _set_host(scope, hop.host)
            address = None if hop.client is None else _address(hop.client)
            if address is None:
                break
            scope["client"] = (address, 0)
            if not is_within(address, self._trusted):
                break
        prefix = headers.get("x-forwarded-prefix", "").rstrip("/")
        if _PREFIX.fullmatch(prefix):
            _set_prefix(scope, prefix)


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """Whether an address belongs to one of the networks."""
    try:
        parsed: Any = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return any(parsed.version == network.version and parsed in network for network in networks)


def _set_host(scope: Scope, host: str) -> None:
    others = [(name, value) for name, value in scope["headers"] if name != b"host"]
    scope["headers"] = [(b"host", host.encode("ascii")), *others]


def _set_prefix(scope: Scope, prefix: str) -> None:
    """Let links begin with `prefix`; the proxy may or may not have removed it from the path."""
    scope["root_path"] = prefix
    if prefix and not f"{scope['path']}/".startswith(f"{prefix}/"):
        scope["path"] = prefix + scope["path"]
        raw = scope.get("raw_path")
        if raw is not None:
            scope["raw_path"] = prefix.encode("ascii") + raw


def _address(text: str) -> str | None:
    """The IP address of a node (RFC 7239, section 6), without its port; `None` for a name."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _forwarded(headers: Headers) -> list[_Hop]:
    """The hops of `Forwarded` (RFC 7239), the first proxy's first; none where it is malformed."""
    hops = []
    for element in _elements(",".join(headers.getlist("forwarded"))):
        pairs: dict[str, str] = {}
        position = 0
        while position < len(element):
            pair = _PAIR.match(element, position)
            if pair is None or (pair.end() < len(element) and element[pair.end()] != ";"):
                return []
            value = pair[2]
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            pairs[pair[1].lower()] = value
            position = pair.end() + 1
        hops.append(_Hop(pairs.get("for"), pairs.get("proto", "").lower(), pairs.get("host")))
    return hops


def _elements(text: str) -> list[str]:
    """Split at commas that are not within quotes; the last ones, if there are very many."""
    found = re.findall(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+', text)
    return [element.strip() for element in found if element.strip()][-_MAX_HOPS:]


def _x_forwarded(headers: Headers) -> list[_Hop]:
    """The hops of `X-Forwarded-For`, `-Proto`, `-Host` and `-Port`, aligned at their ends."""

    def values(name: str) -> list[str]:
        text = ",".join(headers.getlist(f"x-forwarded-{name}"))
        return [value.strip() for value in text.split(",") if value.strip()][-_MAX_HOPS:]

    clients, schemes, hosts = values("for"), values("proto"), values("host")
    ports = values("port")
    if len(hosts) == 1 and ports and is_host(f"{hosts[0]}:{ports[-1]}"):
        scheme = (schemes or ["http"])[-1].lower()
        if ports[-1] != {"http": "80", "https": "443"}.get(scheme):
            hosts = [f"{hosts[0]}:{ports[-1]}"]
    count = max(len(clients), len(schemes), len(hosts))

    def aligned(found: list[str]) -> list[str | None]:
        if len(found) == 1:  # one value, which the first proxy wrote and the others passed on
            return [found[0]] * count
        return [None] * (count - len(found)) + list(found)

    return [
        _Hop(client, None if scheme is None else scheme.lower(), host)
        for client, scheme, host in zip(
            [None] * (count - len(clients)) + list(clients),
            aligned(schemes),
            aligned(hosts),
            strict=True,
        )
    ]
