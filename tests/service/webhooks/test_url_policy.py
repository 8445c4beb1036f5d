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
