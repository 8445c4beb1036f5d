"""`docker compose --profile cpu up` and `--profile gpu up` start whole services, and safe ones."""

import re
from typing import Any

import pytest
import yaml

from service.core.settings import Settings
from service.middleware import AFTER_BODIES_SECONDS
from tests.deploy.manifests import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def of_profile(profile: str) -> dict[str, dict[str, Any]]:
    """The services that a profile starts."""
    return {name: s for name, s in SERVICES.items() if profile in s["profiles"]}


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_a_profile_is_whole(profile: str) -> None:
    started = of_profile(profile)
    assert {f"api-{profile}", f"worker-{profile}", "redis", "store", "bucket", "prometheus"} <= set(
        started
    )
    for name, service in started.items():
        assert set(service.get("depends_on", [])) <= set(started), name
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"]), name
        assert set(service["networks"]) <= set(COMPOSE["networks"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = source in COMPOSE["volumes"] or (ROOT / "docker" / source).exists()
            assert known, f"{name} mounts {source}"


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_api_and_worker_serve_the_same_models(profile: str) -> None:
    named = {
        service["environment"]["IMAGEPROMPT_MODELS"]
        for name, service in of_profile(profile).items()
        if "IMAGEPROMPT_MODELS" in service.get("environment", {})
    }
    assert len(named) == 1
    assert (ROOT / named.pop().removeprefix("/app/")).is_file()


def test_nothing_is_published_beyond_this_machine() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert COMPOSE["networks"]["inside"]["internal"] is True
    for name in ("redis", "store", "worker-cpu", "worker-gpu"):
        assert set(SERVICES[name]["networks"]) == {"inside"}, name


def test_images_have_versions_and_containers_few_rights() -> None:
    for name, service in SERVICES.items():
        assert re.search(r":v?\d[\w.-]*$", service["image"]), name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "privileged" not in service, name
    for name in ("api-cpu", "api-gpu", "worker-cpu", "worker-gpu"):
        assert SERVICES[name]["read_only"] is True, name


def test_workers_get_time_to_drain() -> None:
    drain = Settings.model_fields["drain_seconds"].default
    for name in ("worker-cpu", "worker-gpu"):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > drain


def test_the_api_gets_time_to_take_in_what_has_begun() -> None:
    grace = Settings.model_fields["grace_seconds"].default + AFTER_BODIES_SECONDS
    for name in ("api-cpu", "api-gpu"):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > grace


def test_redis_keeps_an_append_only_file_and_evicts_nothing() -> None:
    secrets = (ROOT / "docker" / COMPOSE["secrets"]["redis.conf"]["file"]).read_text()
    assert "appendonly yes" in secrets
    assert "maxmemory-policy noeviction" in secrets
    assert "maxmemory 320mb" in secrets, "without a limit it would be killed instead of refusing"
    assert "redis:/data" in SERVICES["redis"]["volumes"]
