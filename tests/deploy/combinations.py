"""Every combination of the optional components, by kustomize and Helm: `make test-manifests`.

`make test` builds a part of them (test_chart.py), because all of them take minutes.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.deploy import chart, manifests
from tests.deploy.manifests import K8S
from tests.deploy.validation import OLDEST_CLUSTER, validate

ROUTES = {
    "none": [],
    "ingress": ["ingress"],
    "ingress, tls": ["ingress", "tls"],
    "httproute": ["httproute"],
    "httproute, tls": ["httproute", "tls"],
}
SCALING = {"keda": ["keda"], "keda, redis": ["keda", "keda-redis"], "fixed": ["fixed-replicas"]}
OPTIONS = ("webhooks", "monitoring", "otlp", "compile-cache")


Combination = tuple[str, str, frozenset[str]]


def combinations() -> Iterator[Combination]:
    """Route, scaling and options."""
    switches = itertools.product((False, True), repeat=len(OPTIONS))
    for route, scaling, on in itertools.product(ROUTES, SCALING, switches):
        yield route, scaling, frozenset(itertools.compress(OPTIONS, on))


def overlay(folder: Path, route: str, scaling: str, options: frozenset[str]) -> Path:
    """An overlay like `gpu`, with these components."""
    above = os.path.relpath(K8S, folder)
    production = yaml.safe_load((K8S / "overlays/gpu/kustomization.yaml").read_text())
    workers = yaml.safe_load((K8S / "overlays/gpu/h200/kustomization.yaml").read_text())
    workers["components"] = [*SCALING[scaling], *({"compile-cache"} & options)]
    (folder / "h200").mkdir(parents=True)
    production["resources"] = [f"{above}/base", f"{above}/model-cache", "h200", "policies.yaml"]
    production["components"] = [*ROUTES[route], *sorted(options - {"compile-cache"})]
    if "keda" not in SCALING[scaling]:
        del production["replacements"]
    for kustomization, prefix in ((production, above), (workers, f"../{above}")):
        kustomization["components"] = [
            f"{prefix}/components/{name}" for name in kustomization["components"]
        ]
    workers["resources"] = [f"../{above}/worker-gpu"]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(production))
    (folder / "h200" / "kustomization.yaml").write_text(yaml.safe_dump(workers))
    policies = (K8S / "overlays/gpu/network-policies.yaml").read_text()
    (folder / "policies.yaml").write_text(policies)
    return folder


def values(route: str, scaling: str, options: frozenset[str]) -> dict[str, Any]:
    """The chart's values for the same."""
    kind, _, tls = route.partition(", ")
    clients = "ingress-nginx" if kind == "ingress" else "envoy-gateway-system"
    return {
        "route": {"type": kind, "tls": {"enabled": bool(tls)}, "clientsNamespace": clients},
        "worker": {
            "scaling": {
                "type": scaling.partition(",")[0],
                "redis": {"enabled": scaling == "keda, redis"},
            },
            "compileCache": {"enabled": "compile-cache" in options},
        },
        **{name: {"enabled": name in options} for name in OPTIONS if name != "compile-cache"},
    }


def same_in_both(folder: Path, chosen: Iterable[Combination]) -> int:
    """Build these with both tools, compare and validate the objects; how many there were."""
    seen: set[str] = set()
    number = 0
    for number, combination in enumerate(chosen, 1):
        built = manifests.built_in(overlay(folder / str(number), *combination))
        ours = chart.comparable(chart.rendered(values(*combination)))
        found = list(chart.differences(chart.comparable(built), ours))
        assert not found, f"{combination}: {found}"
        for manifest in built:
            text = json.dumps(manifest, sort_keys=True)
            if text not in seen:
                seen.add(text)
                validate(manifest, OLDEST_CLUSTER)
    return number


def test_every_combination_is_valid_and_the_same_in_both(tmp_path: Path) -> None:
    built = same_in_both(tmp_path, combinations())
    assert built == len(ROUTES) * len(SCALING) * 2 ** len(OPTIONS)
    print(f"\n{built} combinations")  # noqa: T201  a figure
