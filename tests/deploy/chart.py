"""The Helm chart as Helm renders it (the package helm-python-sdk), and when objects are equal."""

import base64
import copy
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import helm_python
import yaml

from tests.deploy.manifests import FAST, K8S, Manifest

CHART = K8S / "chart"
NAMESPACE = "imageprompt"
_HASH = re.compile(r"^(imageprompt|redis|store)-[0-9bcdfghkmt245678]{10}$")
"""A ConfigMap or Secret as kustomize names it; the chart has an annotation on the pods instead."""


def values(name: str) -> dict[str, Any]:
    """A values file of the chart."""
    found: dict[str, Any] = yaml.safe_load((CHART / name).read_text())
    return found


def rendered(given: dict[str, Any], namespace: str = NAMESPACE) -> list[Manifest]:
    """Every object that `helm install` would send. Raises `helm_python.HelmError`."""
    texts = _loaded().render(given, name="imageprompt", namespace=namespace)
    documents = (d for text in texts.values() for d in yaml.load_all(text, Loader=FAST))
    return [document for document in documents if document]


@cache
def _loaded() -> helm_python.Chart:
    return helm_python.Chart.load(str(CHART))


def comparable(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Objects by kind and name, without what the two tools do each in its own way.

    These are: the Namespace object (`helm --create-namespace`), the namespace and the label
    `part-of` of an object, the hash in a name or the checksum in an annotation, text or base64 in
    a Secret, and the order of lists whose entries have names.
    """
    found: dict[str, Manifest] = {}
    for manifest in manifests:
        if manifest["kind"] == "Namespace":
            continue
        plain = _plain(copy.deepcopy(manifest))
        metadata = plain["metadata"]
        metadata.pop("namespace", None)
        labels = metadata.get("labels", {})
        labels.pop("app.kubernetes.io/part-of", None)
        if not labels:
            metadata.pop("labels", None)
        if plain["kind"] == "Secret":
            encoded = plain.pop("data", {})
            decoded = {key: base64.b64decode(text).decode() for key, text in encoded.items()}
            plain["data"] = decoded | plain.pop("stringData", {})
            plain.setdefault("type", "Opaque")
        found[f"{plain['kind']}/{metadata['name']}"] = plain
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _HASH.sub(r"\1", value)
    if isinstance(value, list):
        items = [_plain(item) for item in value]
        named = all(isinstance(item, dict) and "name" in item for item in items)
        return sorted(items, key=lambda item: str(item["name"])) if named else items
    if isinstance(value, dict):
        return {
            key: _plain(item)
            for key, item in value.items()
            if key not in ("checksum/settings", "creationTimestamp")
        }
    return value


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Where two objects differ, for messages."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({*ours, *theirs}):
            yield from differences(ours.get(key), theirs.get(key), f"{path}/{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(*pair, f"{path}/{number}")
    elif ours != theirs:
        yield f"{path}: {ours!r} != {theirs!r}"
