"""Which connections are open: a bound for the process and one for each client address."""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from service.public_url import Network, is_within

IPV6_PREFIX_BITS: Final = 64
"""What one IPv6 client is usually assigned; single addresses would cost it nothing."""


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
