"""Where a webhook may be sent: public addresses only, resolved once and checked.

Whoever connects must connect to the address that `resolve` returned and not ask again, for the
second answer of a hostile name server may be another one.
"""

import ipaddress
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from service.webhooks.lookup import LookupFailed, Lookups

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
"""RFC 6052: an IPv4 address in its last 32 bits."""
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All that is handed out of IPv6 so far (IANA); the rest has special uses, some of them local."""
_METADATA: Final = frozenset(map(ipaddress.ip_address, ("168.63.129.16", "192.0.0.192")))
"""Public by their numbers, but answer every machine of a cloud about itself (Azure, Oracle)."""


class AddressRefused(Exception):
    """Raised when a name does not lead to a public address, or to none."""


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet, also behind every IPv6 disguise."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _inner(address)
        if inner is not None:
            return is_public(inner)
        if address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast and address not in _METADATA


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for (mapped, 6to4, Teredo, NAT64)."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


def is_allowed(address: Address, networks: Sequence[Network]) -> bool:
    """Whether webhooks may go there; `networks` are those the operator allows besides."""
    if is_public(address):
        return True
    return any(address.version == net.version and address in net for net in networks)


def may_be_called(url: str, networks: Sequence[Network]) -> bool:
    """A first look at a URL when it is sent in; names are looked up only at delivery."""
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.username is not None or not parts.hostname:
        return False
    try:
        return is_allowed(ipaddress.ip_address(parts.hostname), networks)
    except ValueError:
        return parts.hostname != "localhost" and not parts.hostname.endswith(".localhost")


async def resolve(host: str, networks: Sequence[Network], lookups: Lookups) -> str:
    """One address of `host`.

    Raises `AddressRefused` where any of them is not allowed, or `LookupsBusy`.
    """
    try:
        found = await lookups.find(host)
    except LookupFailed:
        raise AddressRefused("the name has no address") from None
    addresses = [ipaddress.ip_address(address.partition("%")[0]) for address in found]
    if not addresses or not all(is_allowed(address, networks) for address in addresses):
        raise AddressRefused("the name leads to an address that is not public")
    return str(addresses[0])
