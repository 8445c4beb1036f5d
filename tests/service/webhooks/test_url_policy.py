"""Webhooks go to the open internet only, whatever disguise an address wears."""

import asyncio
import ipaddress
import socket

import pytest

from service.webhooks.url_policy import AddressRefused, Resolver, is_public, may_be_called, resolve

PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:10.0.0.1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2001:db8::1",
    "2001:0:7f00:1::",
    "2001:0:0:0:0:0:80ff:fffe",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


REGISTRY = {
    "0.0.0.0/8": False,
    "0.0.0.0/32": False,
    "10.0.0.0/8": False,
    "100.64.0.0/10": False,
    "127.0.0.0/8": False,
    "169.254.0.0/16": False,
    "172.16.0.0/12": False,
    "192.0.0.0/24": False,
    "192.0.0.0/29": False,
    "192.0.0.8/32": False,
    "192.0.0.9/32": True,
    "192.0.0.10/32": True,
    "192.0.0.170/32": False,
    "192.0.0.171/32": False,
    "192.0.2.0/24": False,
    "192.31.196.0/24": True,
    "192.52.193.0/24": True,
    "192.88.99.0/24": False,
    "192.88.99.2/32": False,
    "192.168.0.0/16": False,
    "192.175.48.0/24": True,
    "198.18.0.0/15": False,
    "198.51.100.0/24": False,
    "203.0.113.0/24": False,
    "240.0.0.0/4": False,
    "255.255.255.255/32": False,
    "::1/128": False,
    "::/128": False,
    "64:ff9b:1::/48": False,
    "100::/64": False,
    "100:0:0:1::/64": False,
    "2001::/23": False,
    "2001:1::1/128": True,
    "2001:1::2/128": True,
    "2001:1::3/128": True,
    "2001:2::/48": False,
    "2001:3::/32": True,
    "2001:4:112::/48": True,
    "2001:10::/28": False,
    "2001:20::/28": True,
    "2001:30::/28": True,
    "2001:db8::/32": False,
    "2620:4f:8000::/48": True,
    "3fff::/20": False,
    "5f00::/16": False,
    "fc00::/7": False,
    "fe80::/10": False,
}
"""IANA's special-purpose address registries: block, globally reachable. Deprecated ones are not.
Without those that carry an IPv4 address (mapped, NAT64, Teredo, 6to4), see PRIVATE and PUBLIC."""


@pytest.mark.parametrize("block", REGISTRY)
def test_the_special_purpose_registries_decide(block: str) -> None:
    """The first and last address of each block that no smaller block contains."""
    network = ipaddress.ip_network(block)
    inner = [
        other
        for other in map(ipaddress.ip_network, REGISTRY)
        if other != network and other.version == network.version and other.subnet_of(network)
    ]
    ends = {network[0], network[-1]}
    checked = [address for address in ends if not any(address in other for other in inner)]
    assert checked or inner
    for address in checked:
        assert is_public(address) is REGISTRY[block], address


@pytest.mark.parametrize("address", ["223.255.255.255", "3fff:1000::1", "2000::1", "11.0.0.0"])
def test_neighbours_of_special_blocks_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PRIVATE)
def test_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://example.org/x", True),
        ("https://8.8.8.8:8443/", True),
        ("http://example.org/", False),
        ("ftp://example.org/", False),
        ("https://localhost/", False),
        ("https://a.localhost/", False),
        ("https://127.0.0.1/", False),
        ("https://[::1]/", False),
        ("https://[::ffff:169.254.169.254]/", False),
        ("https://user@example.org/", False),
        ("https:///x", False),
        ("https://[::1", False),
        ("https://[x]/a", False),
        ("https://localhost./", False),
        ("https://a.localhost./", False),
        ("https://localhost\u3002/", False),
        ("https://%6cocalhost/", False),
        ("https://1.1.1.1:0/", False),
        ("https://1.1.1.1:65536/", False),
        ("https://a:x/", False),
        ("https://127.1/", False),
        ("https://a.0x7f/", False),
        ("https://a..b/", False),
        ("https://a b/", False),
        ("https://a\nb/", False),
        ("https://" + "a" * 64 + ".example/", False),
        ("https://127.0.0.1./", False),
        ("https://[2606:4700::1%25eth0]/", False),
        ("https:x", False),
        ("https://x\ud800/", False),
        ("https://1.1.1.1./", True),
        ("https://b\xfccher.example/", True),
        ("https://example.org.:8443/", True),
        ("https://a_b.3com/", True),
    ],
)
def test_a_url_is_looked_at_when_it_is_sent_in(url: str, allowed: bool) -> None:  # noqa: FBT001  an expectation
    assert may_be_called(url, ()) is allowed


def test_an_operator_may_allow_a_network_of_their_own() -> None:
    network = ipaddress.ip_network("10.1.0.0/16")
    assert may_be_called("https://10.1.2.3/", (network,))
    assert not may_be_called("https://10.2.2.3/", (network,))
    assert not may_be_called("https://[::1]/", (network,))


def _answering(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: found)


def test_a_name_is_refused_when_any_of_its_addresses_is_private(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _answering(monkeypatch, "8.8.8.8", "1.1.1.1")
    assert asyncio.run(resolve("hooks.example", (), Resolver())) == "8.8.8.8"
    _answering(monkeypatch, "8.8.8.8", "10.0.0.1")
    with pytest.raises(AddressRefused):
        asyncio.run(resolve("hooks.example", (), Resolver()))
    _answering(monkeypatch)
    with pytest.raises(AddressRefused):
        asyncio.run(resolve("hooks.example", (), Resolver()))


@pytest.mark.parametrize("host", ["127.1", "0x7f000001", "2130706433", "017700000001", "localhost"])
def test_odd_ways_to_write_loopback_lead_nowhere(host: str) -> None:
    with pytest.raises(AddressRefused):
        asyncio.run(resolve(host, (), Resolver()))
