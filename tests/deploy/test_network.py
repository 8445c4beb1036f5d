"""Whom each pod may speak to, by address and port, as the network policies of an overlay say."""

import ipaddress
from collections.abc import Iterator
from functools import cache

import pytest

from service.webhooks.url_policy import may_be_called
from tests.deploy import manifests
from tests.deploy.manifests import OVERLAYS, Manifest

COMPONENT = "app.kubernetes.io/component"
NAMES = ({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}, 53)
"""The cluster's DNS."""
OUTSIDE = ("1.1.1.1", "8.8.8.8", "52.216.0.1", "140.82.112.3", "2606:4700:4700::1111")
"""Addresses of the open internet."""
METADATA = ("169.254.169.254", "169.254.170.23", "100.100.100.200", "168.63.129.16", "192.0.0.192")
"""Where clouds tell every machine about itself, credentials included."""
INSIDE = ("10.1.2.3", "172.16.9.9", "192.168.1.1", "fd00:ec2::254", "fe80::1", *METADATA)


@cache
def policies(overlay: str, component: str) -> list[Manifest]:
    """The network policies that select the pods of a component."""

    def selects(policy: Manifest) -> bool:
        selector = policy["spec"]["podSelector"]
        assert all(e["operator"] == "In" for e in selector.get("matchExpressions", []))
        return selector.get("matchLabels", {}).get(COMPONENT, component) == component and all(
            component in e["values"] for e in selector.get("matchExpressions", [])
        )

    found = [m for m in manifests.built(overlay) if m["kind"] == "NetworkPolicy"]
    return [policy for policy in found if selects(policy)]


def ways_out(overlay: str, component: str) -> Iterator[tuple[Manifest, object]]:
    """Peer and port (`None`: all) of everything that pods of a component may connect to."""
    for policy in policies(overlay, component):
        for rule in policy["spec"].get("egress", []):
            assert rule.get("to"), f"{manifests.named(policy)} opens every address"
            for port in rule.get("ports", [{}]):
                for peer in rule["to"]:
                    yield peer, port.get("port")


def reaches(overlay: str, component: str, address: str, port: int) -> bool:
    """Whether a connection from a component's pods to an address outside the cluster is allowed."""
    wanted = ipaddress.ip_address(address)
    return any(
        wanted in ipaddress.ip_network(peer["ipBlock"]["cidr"])
        and not any(
            wanted in ipaddress.ip_network(less) for less in peer["ipBlock"].get("except", [])
        )
        for peer, open_port in ways_out(overlay, component)
        if "ipBlock" in peer and open_port in (None, port)
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_is_allowed_but_what_is_listed(overlay: str) -> None:
    for component in ("api", "worker", "redis", "store", "model-cache"):
        deny = next(
            p for p in policies(overlay, component) if p["metadata"]["name"] == "default-deny"
        )
        assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_workers_of_a_trial_reach_redis_the_store_and_names_only() -> None:
    inside = [
        ({"podSelector": {"matchLabels": {COMPONENT: name}}}, port)
        for name, port in (("redis", "redis"), ("store", "s3"))
    ]
    allowed = [NAMES, *inside]
    assert all(way in allowed for way in ways_out("local", "worker"))


def test_gpu_workers_reach_the_addresses_of_redis_and_bucket_and_names_only() -> None:
    """Neither the internet nor the cloud's metadata, at any port."""
    for peer, port in ways_out("gpu", "worker"):
        if (peer, port) == NAMES:
            continue
        block = ipaddress.ip_network(peer["ipBlock"]["cidr"])
        if port == 6379:
            assert block.is_private, "Redis is never asked over the internet"
        else:
            assert port == 443
            assert block.prefixlen >= 16, f"{block} is more than a bucket's endpoint"
    for address in (*OUTSIDE, *METADATA):
        for port in (80, 443, 6379, 8443):
            assert not reaches("gpu", "worker", address, port), f"{address}:{port}"


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("port", [443, 8443, 10443])
def test_a_webhook_that_is_accepted_can_be_delivered(overlay: str, port: int) -> None:
    """What the address check lets in, the policy lets out; and both refuse what is inside."""
    for address in (*OUTSIDE, *INSIDE):
        host = f"[{address}]" if ":" in address else address
        accepted = may_be_called(f"https://{host}:{port}/hook", ())
        assert accepted == (address in OUTSIDE), address
        assert reaches(overlay, "api", address, port) == accepted, f"{address}:{port}"


def test_only_the_model_cache_reaches_a_model_hub() -> None:
    for address in OUTSIDE[:4]:
        assert reaches("gpu", "model-cache", address, 443)
    for address in INSIDE:
        assert not reaches("gpu", "model-cache", address, 443), address
