"""Chart and overlays give the same objects, in every combination of the optional components."""

import json
import re
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from k8s import generate
from service import __version__
from service.core.settings import Settings
from tests.deploy import chart, manifests
from tests.deploy.combinations import OPTIONS, ROUTES, SCALING, overlay, same_in_both, values
from tests.deploy.manifests import K8S, ROOT
from tests.deploy.validation import OLDEST_CLUSTER, validate


@pytest.mark.parametrize("name", manifests.OVERLAYS)
def test_the_chart_gives_the_objects_of_the_overlay(name: str) -> None:
    given = {"gpu": {}, "local": chart.values("values-local.yaml")}[name]
    ours = chart.comparable(chart.rendered(given))
    theirs = chart.comparable(manifests.built(name))
    assert not list(chart.differences(theirs, ours))


def test_components_combine_in_both_alike(tmp_path: Path) -> None:
    """Each route with each scaling, each option alone and missing; all: `make test-manifests`."""
    everything = frozenset(OPTIONS)
    options = [frozenset(), everything]
    chosen = [(route, scaling, on) for route in ROUTES for scaling in SCALING for on in options]
    for option in OPTIONS:
        alone = frozenset({option})
        chosen += [("httproute, tls", "keda", on) for on in (alone, everything - alone)]
    assert same_in_both(tmp_path, chosen) == 38


def test_another_namespace_reaches_every_place_that_names_it(tmp_path: Path) -> None:
    """The autoscaler of an installation counts the jobs of that installation."""
    folder = overlay(tmp_path / "other", "httproute, tls", "keda", frozenset(OPTIONS))
    path = folder / "kustomization.yaml"
    path.write_text(path.read_text().replace("namespace: imageprompt", "namespace: other"))
    built = manifests.built_in(folder)
    assert {m["metadata"].get("namespace", "other") for m in built} == {"other"}
    helm = chart.rendered(values("httproute, tls", "keda", frozenset(OPTIONS)), namespace="other")
    assert not list(chart.differences(chart.comparable(built), chart.comparable(helm)))
    [scaled] = [m for m in helm if m["kind"] == "ScaledObject"]
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert set(re.findall(r'namespace="([^"]*)"', query)) == {"other"}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"worker": {"gpuCout": 2}}, "gpuCout"),
        ({"images": {"api": {"tag": "latest"}}}, "tag"),
        ({"settings": {"IMAGEPROMPT_REDIS_URL": "redis://:secret@host"}}, "settings"),
        ({"route": {"type": "loadbalancer"}}, "type"),
        ({"network": {"redis": {"cidrs": ["redis.example.com"]}}}, "cidrs"),
        ({"workers": [{"name": "H200"}]}, "name"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(helm_python.HelmError, match=complaint):
        chart.rendered(given)


def test_what_an_operator_may_set_arrives() -> None:
    given = {
        "imagePullSecrets": [{"name": "registry"}],
        "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": "arn"},
        "workers": [
            {
                "name": "mig",
                "gpuResource": "nvidia.com/mig-3g.71gb",
                "runtimeClassName": "nvidia",
                "priorityClassName": "high",
                "scaling": {"maxReplicas": 3, "minReplicas": 0},
            },
            {"name": "h100", "scaling": {"type": "fixed", "replicas": 5}},
        ],
        "modelCache": {"storageClassName": "shared"},
        "monitoring": {"runbooks": "https://wiki.example.com/imageprompt", "grafanaFolder": "GPU"},
        "route": {"existingGateway": {"name": "public", "namespace": "gateways"}},
    }
    objects = {manifests.named(m): m for m in chart.rendered(given)}
    mig = objects["Deployment/worker-mig"]["spec"]["template"]["spec"]
    assert mig["containers"][0]["resources"]["limits"]["nvidia.com/mig-3g.71gb"] == 1
    assert (mig["runtimeClassName"], mig["priorityClassName"]) == ("nvidia", "high")
    assert mig["imagePullSecrets"] == [{"name": "registry"}]
    assert objects["ScaledObject/worker-mig"]["spec"]["maxReplicaCount"] == 3
    assert objects["ScaledObject/worker-mig"]["spec"]["minReplicaCount"] == 0
    assert objects["Deployment/worker-h100"]["spec"]["replicas"] == 5
    assert "ScaledObject/worker-h100" not in objects
    account = objects["ServiceAccount/api"]["metadata"]["annotations"]
    assert account == {"eks.amazonaws.com/role-arn": "arn"}
    assert objects["PersistentVolumeClaim/models"]["spec"]["storageClassName"] == "shared"
    rules = json.dumps(objects["PrometheusRule/imageprompt"])
    assert "https://wiki.example.com/imageprompt#" in rules
    assert generate.RUNBOOKS not in rules
    parent = objects["HTTPRoute/api"]["spec"]["parentRefs"]
    assert parent == [{"name": "public", "namespace": "gateways"}]
    assert "Gateway/api" not in objects
    for manifest in objects.values():
        validate(manifest, OLDEST_CLUSTER)


def test_a_changed_setting_starts_new_pods() -> None:
    def checksums(given: dict[str, Any]) -> set[str]:
        pods = [m for m in chart.rendered(given) if m["kind"] == "Deployment"]
        found = [m["spec"]["template"]["metadata"]["annotations"] for m in pods]
        return {annotations["checksum/settings"] for annotations in found}

    before, after = checksums({}), checksums({"settings": {"IMAGEPROMPT_LOG_LEVEL": "DEBUG"}})
    assert len(before) == len(after) == 1
    assert before != after


def test_helm_has_nothing_to_complain_about() -> None:
    messages = helm_python.lint(str(chart.CHART))["messages"]
    assert [m for m in messages if m["severity"] > 1] == []


def test_the_settings_of_the_values_exist() -> None:
    known = {f"IMAGEPROMPT_{name.upper()}" for name in Settings.model_fields}
    for name in ("values.yaml", "values-local.yaml"):
        ours = {key for key in chart.values(name)["settings"] if key.startswith("IMAGEPROMPT_")}
        assert ours <= known


def test_one_version_stands_everywhere() -> None:
    """Chart, images and overlays name the version of the program."""
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == __version__
    texts = [
        chart.CHART / "values.yaml",
        chart.CHART / "values-local.yaml",
        ROOT / "docker" / "compose.yaml",
        *(K8S / "overlays").rglob("*.yaml"),
    ]
    for path in texts:
        named = re.findall(r"(?:imageprompt-\w+:|tag: |newTag: )(\d+\.\d+\.\d+)", path.read_text())
        assert set(named) <= {__version__}, path


@pytest.mark.parametrize("path", generate.files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_generated_file_is_up_to_date(path: Path) -> None:
    assert path.read_text() == generate.files()[path], "run `python -m k8s.generate`"


def test_runbooks_may_be_published_elsewhere() -> None:
    text = generate.prometheus_rule("https://wiki.example.com/imageprompt")
    assert generate.RUNBOOKS not in text
    assert text.count("https://wiki.example.com/imageprompt#") > 20
