"""What the Kubernetes API refuses to change in an object, and where two builds differ in that.

`python -m tests.deploy.upgrade` writes released.json anew; run it when a version is released.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.deploy import manifests
from tests.deploy.manifests import OVERLAYS, Manifest, named

RELEASED = Path(__file__).parent / "released.json"
"""The fixed fields of every object, by overlay, as the last release has them."""

Place = tuple[str, ...]

IMMUTABLE: dict[str, tuple[Place, ...]] = {
    "Deployment": (("spec", "selector"),),
    "StatefulSet": (
        ("spec", "selector"),
        ("spec", "serviceName"),
        ("spec", "podManagementPolicy"),
        ("spec", "volumeClaimTemplates"),
    ),
    "Job": (("spec", "selector"), ("spec", "template"), ("spec", "completionMode")),
    "PersistentVolumeClaim": (
        ("spec", "accessModes"),
        ("spec", "storageClassName"),
        ("spec", "volumeName"),
        ("spec", "volumeMode"),
    ),
    "Service": (("spec", "clusterIP"),),
    "Secret": (("type",),),
}
"""By kind, after the validation rules of Kubernetes 1.30 to 1.37. A size of a claim may grow."""


def key(manifest: Manifest) -> str:
    """What identifies an object in a cluster."""
    return f"{manifest['apiVersion'].split('/')[0]} {named(manifest)}"


def fixed(manifest: Manifest) -> dict[str, Any]:
    """The fields of an object that cannot be changed, by their path."""
    found = {}
    for place in IMMUTABLE.get(manifest["kind"], ()):
        value: Any = manifest
        for step in place:
            value = value.get(step) if isinstance(value, dict) else None
        found[".".join(place)] = value
    if manifest["kind"] == "PersistentVolumeClaim":
        found["size"] = manifest["spec"]["resources"]["requests"]["storage"]
    return found


def refused(old: dict[str, dict[str, Any]], new: list[Manifest]) -> Iterator[str]:
    """What of `new` a cluster would refuse that holds the fixed fields `old`."""
    for manifest in new:
        before = old.get(key(manifest))
        if before is not None:
            for place, value in fixed(manifest).items():
                if before.get(place) != value:
                    yield f"{named(manifest)}: {place} was {json.dumps(before.get(place))}"


def write() -> None:
    """Record the fixed fields of the overlays as they are now."""
    record = {
        overlay: {key(m): found for m in manifests.built(overlay) if (found := fixed(m))}
        for overlay in OVERLAYS
    }
    RELEASED.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write()
