"""`kubectl apply -k` and `helm upgrade` are the whole upgrade: nothing immutable changes.

Tried without a cluster: the objects of two builds are compared in the fields that the Kubernetes
API refuses to change. released.json has them as the last release has them.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import chart, manifests, upgrade
from tests.deploy.manifests import K8S, OVERLAYS, Manifest

RELEASED: dict[str, dict[str, Any]] = json.loads(upgrade.RELEASED.read_text())


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> list[Manifest]:
    """The overlay `gpu` with a change of its kustomization."""
    shutil.copytree(K8S, folder / "k8s", dirs_exist_ok=True)
    path = folder / "k8s" / "overlays" / "gpu" / "kustomization.yaml"
    kustomization = yaml.safe_load(path.read_text())
    change(kustomization)
    path.write_text(yaml.safe_dump(kustomization))
    return manifests.built_in(path.parent)


def new_tag(kustomization: dict[str, Any]) -> None:
    for image in kustomization["images"]:
        image["newTag"] = f"9.9.9{image['newTag'].removeprefix('0.1.0')}"


def new_setting(kustomization: dict[str, Any]) -> None:
    kustomization["configMapGenerator"][0]["literals"].append("IMAGEPROMPT_LOG_LEVEL=DEBUG")


def new_models(kustomization: dict[str, Any]) -> None:
    kustomization["configMapGenerator"][0]["literals"][0] = "IMAGEPROMPT_MODELS=/models/mine.yaml"


@pytest.mark.parametrize("change", [new_tag, new_setting, new_models], ids=lambda f: f.__name__)
def test_a_changed_overlay_can_be_applied_over_the_old_one(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    old = {upgrade.key(m): upgrade.fixed(m) for m in manifests.built("gpu")}
    new = changed(tmp_path, change)
    assert not list(upgrade.refused(old, new))
    templates = {upgrade.key(m): m["spec"]["template"] for m in manifests.built("gpu") if _runs(m)}
    for manifest in new:
        if _runs(manifest) and manifest["metadata"]["name"] != "api":
            before = templates[upgrade.key(manifest)]
            assert manifest["spec"]["template"] != before, "new pods start with the change"


def _runs(manifest: Manifest) -> bool:
    return manifest["kind"] in ("Deployment", "StatefulSet", "Job")


def test_no_object_runs_only_once() -> None:
    """A Job's template cannot be changed, and GitOps tools repeat what its time to live deletes."""
    for overlay in OVERLAYS:
        assert not [m for m in manifests.built(overlay) if m["kind"] == "Job"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_overlays_can_be_applied_over_the_last_release(overlay: str) -> None:
    assert not list(upgrade.refused(RELEASED[overlay], manifests.built(overlay)))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_chart_can_be_upgraded_from_the_last_release(overlay: str) -> None:
    given = {"gpu": {}, "local": chart.values("values-local.yaml")}[overlay]
    assert not list(upgrade.refused(RELEASED[overlay], chart.rendered(given)))


def test_what_a_cluster_would_refuse_is_found() -> None:
    """The comparison itself: a selector, a claim, a Job's template, each changed."""
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "j"},
        "spec": {"template": {"spec": {"containers": [{"image": "a:1"}]}}},
    }
    built = [*manifests.built("local"), job]
    old = {upgrade.key(m): upgrade.fixed(m) for m in built}
    new = json.loads(json.dumps(built))
    by_name = {manifests.named(m): m["spec"] for m in new if "spec" in m}
    by_name["Deployment/worker"]["selector"]["matchLabels"]["x"] = "y"
    by_name["StatefulSet/redis"]["volumeClaimTemplates"][0]["spec"]["accessModes"] = [
        "ReadOnlyMany"
    ]
    by_name["Job/j"]["template"]["spec"]["containers"][0]["image"] = "a:2"
    found = [message.split(" was ")[0] for message in upgrade.refused(old, new)]
    assert sorted(found) == [
        "Deployment/worker: spec.selector",
        "Job/j: spec.template",
        "StatefulSet/redis: spec.volumeClaimTemplates",
    ]
