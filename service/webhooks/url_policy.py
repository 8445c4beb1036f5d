"""Which URLs webhooks may be sent to: public addresses only, resolved once and checked.

Connect to the address that `resolve` returned and do not resolve the name again: the second answer
of a hostile name server may be another one.
"""

import asyncio
import contextlib
import ipaddress
import re
import socket
import threading
from collections.abc import Sequence
from typing import Final

import httpx

from service.limits import FairShare

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOKUP_TIMEOUT_SECONDS: Final = 10.0
MAX_LOOKUPS: Final = 128
MAX_UNKNOWN_LOOKUPS: Final = 96
"""Of these, for names that were never resolved before: slow ones leave capacity for the others."""
MAX_REMEMBERED_NAMES: Final = 10_000

_LAST_PORT: Final = 65535
_NAME: Final = re.compile(
    r"(?=.{1,253}$)(?:[a-z0-9_-]{1,63}\.)*(?!(?:[0-9]+|0x[0-9a-f]*)$)[a-z0-9_-]{1,63}"
)
"""A name of the DNS; what ends in a number is an address (WHATWG URL, 3.5), if anything."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
"""RFC 6052: an IPv4 address in its last 32 bits."""
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All that is allocated of IPv6 so far (IANA); the rest has special uses, some of them local."""
_MULTICAST: Final = ipaddress.IPv4Network("224.0.0.0/4")
_NOT_GLOBAL: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "240.0.0.0/4",
            "2001::/23",
            "2001:db8::/32",
            "3fff::/20",
        ),
    )
)
"""Blocks that the IANA special-purpose address registries (IPv4 and IPv6) do not call globally
reachable, within global unicast; those that carry an IPv4 address are judged by that."""
_GLOBAL_WITHIN: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.9/32",
            "192.0.0.10/32",
            "2001:1::1/128",
            "2001:1::2/128",
            "2001:1::3/128",
            "2001:3::/32",
            "2001:4:112::/48",
            "2001:20::/28",
            "2001:30::/28",
        ),
    )
)
"""Parts of these blocks that the registries do call globally reachable."""
_METADATA: Final = frozenset(map(ipaddress.ip_address, ("168.63.129.16", "192.0.0.192")))
"""Public by their numbers, but they serve a cloud's metadata to every machine (Azure, Oracle)."""


class AddressRefused(Exception):
    """Raised when a name resolves to an address that is not public, or to none."""


class LookupFailed(Exception):
    """Raised when a name has no address, or its name server does not answer in time."""


class TooManyLookups(Exception):
    """Raised when as many lookups are in progress as are allowed; the name may be good."""


def is_public(address: Address) -> bool:
    """Whether an address is public, whatever IPv6 form it is written in."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = _embedded_ipv4(address)
        if embedded is not None:
            return is_public(embedded)
        if address not in _GLOBAL_UNICAST:
            return False
    if address in _METADATA or _is_in(address, (_MULTICAST,)):
        return False
    return _is_in(address, _GLOBAL_WITHIN) or not _is_in(address, _NOT_GLOBAL)


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == net.version and address in net for net in networks)


def _embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for (mapped, 6to4, Teredo, NAT64)."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


def is_allowed(address: Address, networks: Sequence[Network]) -> bool:
    """Whether webhooks may be sent to an address; `networks` are allowed beside the public ones."""
    return is_public(address) or _is_in(address, networks)


def may_be_called(url: str, networks: Sequence[Network]) -> bool:
    """Whether a URL may be submitted; its name is resolved at delivery only."""
    try:
        target = httpx.URL(url)  # as the client that calls it reads it
    except httpx.InvalidURL:
        return False
    if target.scheme != "https" or target.userinfo or b"%" in target.raw_host:
        return False
    if target.port is not None and not 0 < target.port <= _LAST_PORT:
        return False
    name = target.raw_host.decode("ascii").removesuffix(".")
    try:
        return is_allowed(ipaddress.ip_address(name), networks)
    except ValueError:
        return bool(_NAME.fullmatch(name)) and name.rpartition(".")[2] != "localhost"


async def resolve(
    host: str, networks: Sequence[Network], resolver: "Resolver", *, owner: str = ""
) -> str:
    """One address of `host`.

    Raises `AddressRefused` where any of its addresses is not allowed, or `TooManyLookups`.
    """
    try:
        found = await resolver.addresses(host, owner=owner)
    except LookupFailed:
        raise AddressRefused("the name has no address") from None
    addresses = [ipaddress.ip_address(address.partition("%")[0]) for address in found]
    if not addresses or not all(is_allowed(address, networks) for address in addresses):
        raise AddressRefused("the name resolves to an address that is not public")
    return str(addresses[0])


class Resolver:
    """Resolves names in threads of its own, so that a silent name server delays no other name.

    A lookup in libc cannot be cancelled and may take half a minute. A caller waits for
    `LOOKUP_TIMEOUT_SECONDS`; there is one thread a name, however many callers wait for it.
    """

    def __init__(self) -> None:
        self._in_progress: dict[str, asyncio.Future[list[str]]] = {}
        self._resolved_before: dict[str, None] = {}
        self._unknown = FairShare(MAX_UNKNOWN_LOOKUPS)

    async def addresses(self, host: str, *, owner: str = "") -> list[str]:
        """The addresses of a name. Raises `LookupFailed` or `TooManyLookups`."""
        lookup = self._in_progress.get(host) or self._start(host, owner)
        try:
            # Shielded: other callers may wait for it, and its thread continues in any case.
            return await asyncio.wait_for(asyncio.shield(lookup), LOOKUP_TIMEOUT_SECONDS)
        except (OSError, UnicodeError):  # among them TimeoutError
            raise LookupFailed from None

    def _start(self, host: str, owner: str) -> asyncio.Future[list[str]]:
        known = host in self._resolved_before
        if len(self._in_progress) >= MAX_LOOKUPS or not (known or self._unknown.take(owner)):
            raise TooManyLookups
        loop = asyncio.get_running_loop()
        lookup: asyncio.Future[list[str]] = loop.create_future()
        self._in_progress[host] = lookup
        lookup.add_done_callback(lambda done: self._ended(host, None if known else owner, done))
        # Not an executor: the interpreter waits for an executor's threads when it exits.
        threading.Thread(target=_look_up, args=(host, loop, lookup), daemon=True).start()
        return lookup

    def _ended(self, host: str, slot_of: str | None, done: asyncio.Future[list[str]]) -> None:
        del self._in_progress[host]
        if slot_of is not None:
            self._unknown.release(slot_of)
        self._resolved_before.pop(host, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._resolved_before[host] = None
        if len(self._resolved_before) > MAX_REMEMBERED_NAMES:
            del self._resolved_before[next(iter(self._resolved_before))]


def _look_up(host: str, loop: asyncio.AbstractEventLoop, lookup: asyncio.Future[list[str]]) -> None:
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in entries]
    except (OSError, UnicodeError) as error:
        _set_result(loop, lookup, error)
    else:
        _set_result(loop, lookup, addresses)


def _set_result(
    loop: asyncio.AbstractEventLoop,
    lookup: asyncio.Future[list[str]],
    result: list[str] | Exception,
) -> None:
    def set_result() -> None:
        if lookup.cancelled():
            return
        if isinstance(result, Exception):
            lookup.set_exception(result)
        else:
            lookup.set_result(result)

    with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits any more
        loop.call_soon_threadsafe(set_result)
