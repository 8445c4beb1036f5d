"""An operator's `kubectl apply -k` is accepted: every object has the fields its kind knows."""

from collections import Counter
from collections.abc import Iterator

import kubernetes_validate
import pytest

from tests.deploy import manifests
from tests.deploy.manifests import OVERLAYS, Manifest
from tests.deploy.validation import OLDEST_CLUSTER, validate


@pytest.mark.parametrize("version", [OLDEST_CLUSTER, kubernetes_validate.latest_version()])
def test_every_object_file_is_valid(version: str) -> None:
    found = manifests.files()
    assert len(found) > 25
    for manifest in found:
        validate(manifest, version)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("version", [OLDEST_CLUSTER, kubernetes_validate.latest_version()])
def test_every_overlay_builds_and_is_valid(overlay: str, version: str) -> None:
    built = manifests.built(overlay)
    for manifest in built:
        validate(manifest, version)
    names = Counter((m["kind"], m["metadata"]["name"]) for m in built)
    assert max(names.values()) == 1
    assert all(
        m["metadata"].get("namespace") == "imageprompt" for m in built if m["kind"] != "Namespace"
    )


def test_a_misspelt_field_is_found() -> None:
    """The checks themselves fail where they should, for built-in and for custom kinds."""
    for kind, field in (
        ("HorizontalPodAutoscaler", "minReplica"),
        ("ScaledObject", "minReplicas"),
        ("HTTPRoute", "hostname"),
        ("Gateway", "listener"),
        ("Certificate", "dnsName"),
    ):
        manifest = next(m for m in manifests.files() if m["kind"] == kind)
        manifest["spec"][field] = 1
        with pytest.raises(pytest.fail.Exception, match=field):
            validate(manifest, OLDEST_CLUSTER)


def _mentioned(spec: Manifest) -> Iterator[tuple[str, str]]:
    """(kind, name) of every object that a pod spec needs."""
    if "serviceAccountName" in spec:
        yield "ServiceAccount", spec["serviceAccountName"]
    for volume in spec.get("volumes", []):
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for container in manifests.containers(spec):
        for source in container.get("envFrom", []):
            yield "ConfigMap", source["configMapRef"]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_that_is_pointed_at_exists(overlay: str) -> None:
    """Volumes, configuration, services, scale targets and accounts: no name leads nowhere."""
    built = manifests.built(overlay)
    names = {(m["kind"], m["metadata"]["name"]) for m in built}
    # The operator makes this Secret from real credentials (k8s/README.md), cert-manager the other.
    names |= {("Secret", "imageprompt")} if overlay == "gpu" else set()
    names |= {("Secret", m["spec"]["secretName"]) for m in built if m["kind"] == "Certificate"}
    wanted = {name for _, spec in manifests.pod_specs(built) for name in _mentioned(spec)}
    for manifest in built:
        if "scaleTargetRef" in manifest.get("spec", {}):
            wanted.add(("Deployment", manifest["spec"]["scaleTargetRef"]["name"]))
        if manifest["kind"] == "HTTPRoute":
            wanted |= {("Gateway", parent["name"]) for parent in manifest["spec"]["parentRefs"]}
            for rule in manifest["spec"]["rules"]:
                wanted |= {("Service", backend["name"]) for backend in rule["backendRefs"]}
        if manifest["kind"] == "Gateway":
            for listener in manifest["spec"]["listeners"]:
                references = listener.get("tls", {}).get("certificateRefs", [])
                wanted |= {("Secret", reference["name"]) for reference in references}
    assert wanted - names == set()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_and_named_ports_match_pods(overlay: str) -> None:
    """A Service, a budget, a policy or a monitor that selects nothing does nothing, silently."""
    built = manifests.built(overlay)
    pods = [
        (m["spec"]["template"]["metadata"]["labels"], m["spec"]["template"]["spec"])
        for m in built
        if m["kind"] in ("Deployment", "StatefulSet", "Job")
    ]
    services = [(m["metadata"].get("labels", {}), m) for m in built if m["kind"] == "Service"]

    def ports(selector: dict[str, str]) -> set[str]:
        chosen = [spec for labels, spec in pods if selector.items() <= labels.items()]
        assert chosen, f"nothing has the labels {selector}"
        return {
            port["name"]
            for spec in chosen
            for container in spec["containers"]
            for port in container.get("ports", [])
        }

    for manifest in built:
        spec = manifest.get("spec", {})
        match manifest["kind"]:
            case "Service":
                offered = ports(spec["selector"])
                assert {port["targetPort"] for port in spec["ports"]} <= offered
            case "PodDisruptionBudget":
                ports(spec["selector"]["matchLabels"])
            case "PodMonitor":
                offered = ports(spec["selector"]["matchLabels"])
                assert {point["port"] for point in spec["podMetricsEndpoints"]} <= offered
            case "ServiceMonitor":
                wanted = spec["selector"]["matchLabels"].items()
                chosen = [m for labels, m in services if wanted <= labels.items()]
                offered = {port["name"] for m in chosen for port in m["spec"]["ports"]}
                assert {point["port"] for point in spec["endpoints"]} <= offered
            case "NetworkPolicy":
                ports(spec["podSelector"].get("matchLabels", {}))
