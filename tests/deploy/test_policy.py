"""What no pod of ours may be: privileged, unbounded, unwatched, of an unknown version."""

import re

import pytest

from tests.deploy import manifests
from tests.deploy.manifests import OVERLAYS, Manifest


def _gibibytes(quantity: str) -> float:
    number, unit = quantity[:-2], quantity[-2:]
    return float(number) / {"Gi": 1, "Mi": 1024}[unit]


@pytest.fixture(params=[*OVERLAYS, "files"])
def objects(request: pytest.FixtureRequest) -> list[Manifest]:
    """All objects: of each overlay as built, and as they stand in their files."""
    return manifests.files() if request.param == "files" else manifests.built(request.param)


def test_no_container_runs_as_root_or_can_become_it(objects: list[Manifest]) -> None:
    """The level `restricted` of the pod security standards, and a read-only root besides."""
    for name, spec in manifests.pod_specs(objects):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), name
        for container in manifests.containers(spec):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["readOnlyRootFilesystem"] is True, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
        kinds = {key for volume in spec.get("volumes", []) for key in volume if key != "name"}
        assert kinds <= {"secret", "emptyDir", "persistentVolumeClaim"}, name


def test_the_namespace_enforces_the_restricted_level(objects: list[Manifest]) -> None:
    namespace = next(m for m in objects if m["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_pod_carries_a_token_of_the_cluster(objects: list[Manifest]) -> None:
    for name, spec in manifests.pod_specs(objects):
        assert spec["automountServiceAccountToken"] is False, name
    for manifest in objects:
        if manifest["kind"] == "ServiceAccount":
            assert manifest["automountServiceAccountToken"] is False


def test_every_container_has_requests_and_a_memory_limit(objects: list[Manifest]) -> None:
    for name, spec in manifests.pod_specs(objects):
        for container in manifests.containers(spec):
            resources = container["resources"]
            for kind in ("requests", "limits"):
                assert {"cpu", "memory", "ephemeral-storage"} <= resources[kind].keys(), name
        volumes = spec.get("volumes", [])
        on_disk = [
            v["emptyDir"] for v in volumes if "medium" not in v.get("emptyDir", {"medium": ""})
        ]
        room = sum(_gibibytes(volume["sizeLimit"]) for volume in on_disk)
        assert room <= sum(
            _gibibytes(container["resources"]["limits"]["ephemeral-storage"])
            for container in manifests.containers(spec)
        ), f"{name}: the volumes on the node's disk may grow beyond the limit"
        for volume in spec.get("volumes", []):
            if "emptyDir" in volume:
                assert "sizeLimit" in volume["emptyDir"], f"{name}: {volume['name']}"


def test_everything_that_serves_is_probed(objects: list[Manifest]) -> None:
    for manifest in objects:
        if manifest["kind"] not in ("Deployment", "StatefulSet"):
            continue
        for container in manifest["spec"]["template"]["spec"]["containers"]:
            if (manifest["metadata"]["name"], container["name"]) == ("model-cache", "done"):
                continue  # it serves nothing; its init container does the work
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert probe in container, f"{manifests.named(manifest)} has no {probe}"


def test_every_image_has_a_version(objects: list[Manifest]) -> None:
    for name, spec in manifests.pod_specs(objects):
        for container in manifests.containers(spec):
            assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", container["image"]), name
            assert not container["image"].endswith(":latest"), name


def test_no_secret_is_given_in_the_environment(objects: list[Manifest]) -> None:
    """Files under IMAGEPROMPT_SECRETS_DIR carry them: an environment shows up in crash reports."""
    for name, spec in manifests.pod_specs(objects):
        for container in manifests.containers(spec):
            for variable in container.get("env", []):
                assert "secretKeyRef" not in variable.get("valueFrom", {}), name
                assert not re.search(r"REDIS_URL|SECRET_ACCESS|PASSWORD|TOKEN$", variable["name"])
            assert all("secretRef" not in source for source in container.get("envFrom", []))
    for manifest in objects:
        if manifest["kind"] == "ConfigMap":
            assert not any(
                re.search(r"REDIS_URL|ACCESS_KEY|PASSWORD", key) for key in manifest["data"]
            )


def test_pods_get_longer_to_stop_than_they_need() -> None:
    from service.core.settings import Settings  # noqa: PLC0415  read late, as the process does
    from service.middleware import AFTER_BODIES_SECONDS  # noqa: PLC0415  likewise

    specs = dict(manifests.pod_specs(manifests.files()))
    drain = Settings.model_fields["drain_seconds"].default
    assert specs["Deployment/worker"]["terminationGracePeriodSeconds"] > drain + 10
    api = specs["Deployment/api"]
    pause = api["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = Settings.model_fields["grace_seconds"].default + AFTER_BODIES_SECONDS
    assert api["terminationGracePeriodSeconds"] > pause + grace


def test_gpu_workers_hold_one_gpu_each_and_download_nothing() -> None:
    built = manifests.built("gpu")
    specs = {
        name: s for name, s in manifests.pod_specs(built) if name.startswith("Deployment/worker-")
    }
    assert specs
    for name, spec in specs.items():
        worker = spec["containers"][0]
        assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1, name
        for container in manifests.containers(spec):
            assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"], name
        models = next(v for v in worker["volumeMounts"] if v["name"] == "models")
        assert models["readOnly"] is True, name
        assert any(v.get("emptyDir", {}).get("medium") == "Memory" for v in spec["volumes"]), name
        warm_up = worker["startupProbe"]
        assert warm_up["periodSeconds"] * warm_up["failureThreshold"] >= 600, name
        assert any(t["key"] == "nvidia.com/gpu" for t in spec["tolerations"]), name


def test_the_autoscaler_counts_waiting_and_running_jobs() -> None:
    scaled = next(m for m in manifests.files() if m["kind"] == "ScaledObject")
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert "imageprompt_queue_jobs" in query
    assert "imageprompt_running_jobs" in query
    assert scaled["spec"]["fallback"]["replicas"] >= 1
    behavior = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 300
