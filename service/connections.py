"""Bounds of connections: how many are open, for the process and for an address, and of each one."""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from service.public_url import Network, is_within

IPV6_PREFIX_BITS: Final = 64
"""What one IPv6 client is usually assigned; single addresses would cost it nothing."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds on what a client sends outside a request's body, and on the pace of both sides."""

    head_bytes: int = 2**16
    """Request line and headers together (400)."""
    header_fields: int = 100
    """Header fields of one request, and its trailer fields (400)."""
    head_seconds: float = 15
    """From the moment the server waits for a request until its head is complete (408)."""
    pipelined_bytes: int = 2**16
    """What is kept of further requests while one is answered; beyond it reading is paused."""
    framing_bytes: int = 2**14
    """Of a chunked body between two pieces of data: chunk sizes, extensions, trailers (400)."""
    framing_ratio: int = 16
    """Bytes of framing for each byte of a chunked body, beside the first 64 KiB (400)."""
    body_window_seconds: float = 20
    body_bytes_per_second: int = 1024
    """Least pace of a body, over each window in which the server reads (408)."""
    response_window_seconds: float = 30
    response_bytes_per_second: int = 1024
    """Least pace at which a client reads, over each window in which it holds the response up."""
    discard_seconds: float = 15
    discard_bytes: int = 2**27
    """What is still read of a body after its response, so that the client sees the response."""
    check_seconds: float = 1
    """How often times and paces are checked."""


class Evictable(Protocol):
    """A connection that can be closed while it waits for a request."""

    def evict(self) -> None:
        """Close the connection at once."""


C = TypeVar("C", bound=Evictable)


class Connections(Generic[C]):
    """Open connections by client address.

    Where there are too many, the one that has waited for a request for longest is closed for the
    new one: of the same address, or of the address that has the most. So connections that send
    nothing keep nobody out.
    """

    def __init__(
        self, limit: int, limit_per_address: int, *, proxies: Sequence[Network] = ()
    ) -> None:
        """The addresses of `proxies` have no limit of their own: many clients share them."""
        self._proxies = proxies
        self._limit = limit
        self._limit_per_address = limit_per_address
        self._waiting: dict[str, dict[C, None]] = {}
        """Waiting connections of an address, that which has waited longest first."""
        self._busy: dict[str, set[C]] = {}
        self._group_of: dict[C, str] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    def add(self, connection: C, address: str) -> bool:
        """Count a new connection, which waits for a request. False where it must be refused."""
        group = client_group(address)
        if self._count(group) >= self._limit_per_address and not is_within(group, self._proxies):
            if not self._evict_from([group]):
                return False
        elif len(self) >= self._limit and not self._evict_from(self._waiting):
            return False
        self._waiting.setdefault(group, {})[connection] = None
        self._busy.setdefault(group, set())
        self._group_of[connection] = group
        return True

    def move(self, connection: C, *, waiting: bool) -> None:
        """Note whether a connection waits for a request or has one."""
        group = self._group_of.get(connection)
        if group is None:
            return
        if waiting:
            self._busy[group].discard(connection)
            self._waiting[group][connection] = None
        else:
            self._waiting[group].pop(connection, None)
            self._busy[group].add(connection)

    def remove(self, connection: C) -> None:
        """Forget a connection."""
        group = self._group_of.pop(connection, None)
        if group is None:
            return
        self._waiting[group].pop(connection, None)
        self._busy[group].discard(connection)
        if not self._count(group):
            del self._waiting[group], self._busy[group]

    def _count(self, group: str) -> int:
        return len(self._waiting.get(group, ())) + len(self._busy.get(group, ()))

    def _evict_from(self, groups: Iterable[str]) -> bool:
        """Close the connection that has waited longest in the largest of these groups."""
        with_waiting = [group for group in groups if self._waiting[group]]
        if not with_waiting:
            return False
        oldest = next(iter(self._waiting[max(with_waiting, key=self._count)]))
        self.remove(oldest)
        oldest.evict()
        return True


def client_group(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address  # a Unix socket has none
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        if mapped is not None:
            return str(mapped)
        return str(ipaddress.ip_network((parsed, IPV6_PREFIX_BITS), strict=False).network_address)
    return address
