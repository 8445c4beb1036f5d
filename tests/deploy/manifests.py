"""The Kubernetes objects of this project, as files and as kustomize builds them."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("local", "gpu")

Manifest = dict[str, Any]


def files() -> list[Manifest]:
    """Every complete object under k8s/, read from its own file. Needs no tool."""
    paths = sorted(
        path
        for path in K8S.rglob("*.yaml")
        # What only kustomize reads: its own files and the patch of a Deployment.
        if path.name not in ("kustomization.yaml", "name-reference.yaml", "deployment-gpu.yaml")
    )
    return [document for path in paths for document in yaml.safe_load_all(path.read_text())]


OLDEST_KUSTOMIZE = 5
_ABSENT = (
    "no kustomize 5 is on PATH (kubectl 1.27 and newer have it); install one to see the overlays "
    "built (the objects' own files are checked all the same)"
)


@cache
def _kustomize() -> list[str] | None:
    """The command that builds a folder, `None` where there is none or only an old one."""
    for asked, builds in (
        (["kubectl", "version", "--client", "--output=json"], ["kubectl", "kustomize"]),
        (["kustomize", "version"], ["kustomize", "build"]),
    ):
        if shutil.which(asked[0]) is not None:
            told = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
            version = re.search(r'"kustomizeVersion": "v(\d+)|^v(\d+)', told.stdout, re.MULTILINE)
            if version and int(version[1] or version[2]) >= OLDEST_KUSTOMIZE:
                return builds
    return None


@cache
def _build(overlay: str) -> str:
    command = _kustomize()
    if command is None:
        pytest.skip(_ABSENT)
    done = subprocess.run(
        [*command, str(K8S / "overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def built(overlay: str) -> list[Manifest]:
    """Every object of an overlay. Skips where there is no kustomize."""
    return list(yaml.safe_load_all(_build(overlay)))


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
