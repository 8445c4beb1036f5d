"""An operator's `kubectl apply -k` is accepted: every object has the fields its kind knows."""

import functools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
from kubernetes_validate import utils

from monitoring import operator_rules
from tests.deploy import manifests
from tests.deploy.manifests import OVERLAYS, Manifest

SCHEMAS = Path(__file__).parent / "schemas"
# The package reads some megabytes anew for each object; once is enough.
utils.schema_contents = functools.cache(utils.schema_contents)
OLDEST_CLUSTER = "1.30"  # the first in which a container may sleep before it stops


def validate(manifest: Manifest, version: str) -> None:
    """Check one object strictly: unknown fields are errors."""
    own = SCHEMAS / f"{manifest['kind'].lower()}.json"
    try:
        if own.exists():
            schema = json.loads(own.read_text())
            jsonschema.Draft202012Validator.check_schema(schema)
            jsonschema.validate(manifest, schema, cls=jsonschema.Draft202012Validator)
        else:
            kubernetes_validate.validate(manifest, version, strict=True)
    except jsonschema.ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path)
        pytest.fail(f"{manifests.named(manifest)}: {where}: {error.message}")


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
    for kind, field in (("HorizontalPodAutoscaler", "minReplica"), ("ScaledObject", "minReplicas")):
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
    # The operator makes this Secret from real credentials (k8s/README.md).
    names |= {("Secret", "imageprompt")} if overlay == "gpu" else set()
    wanted = {name for _, spec in manifests.pod_specs(built) for name in _mentioned(spec)}
    for manifest in built:
        if "scaleTargetRef" in manifest.get("spec", {}):
            wanted.add(("Deployment", manifest["spec"]["scaleTargetRef"]["name"]))
        if manifest["kind"] == "Ingress":
            for rule in manifest["spec"]["rules"]:
                for path in rule["http"]["paths"]:
                    wanted.add(("Service", path["backend"]["service"]["name"]))
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


def test_the_operator_gets_the_rules_that_are_tested() -> None:
    """k8s/monitoring/prometheus-rule.yaml is monitoring/rules/; see operator_rules.py."""
    assert operator_rules.TARGET.read_text() == operator_rules.render()
