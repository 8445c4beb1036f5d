"""Manifests and images speak of the program that is there: its settings, routes and ports."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.app import create_app
from service.core.settings import Settings
from tests.deploy import manifests
from tests.deploy.manifests import ROOT

COMPOSE = ROOT / "docker" / "compose.yaml"
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
API_IMAGE = (ROOT / "docker" / "api.Dockerfile").read_text()
SPEAKING = [*DOCKERFILES, COMPOSE, *sorted((ROOT / "k8s").rglob("*.yaml"))]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "k8s/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PREFIX = "IMAGEPROMPT_"


def routes() -> dict[str, str]:
    """Path templates of the API, and one path of each."""
    undescribed = {"/", "/static/{version}/{name}", "/docs", "/docs/{name}", "/openapi.json"}
    templates = {*create_app(Settings()).openapi()["paths"], *undescribed}
    return {template: re.sub(r"\{[^}]*\}", "x", template) for template in templates}


@pytest.mark.parametrize("path", [*SPEAKING, *DOCUMENTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_setting_that_is_named_exists(path: Path) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {f"{PREFIX}SECRETS_DIR"}
    known |= {f"{PREFIX}URL", f"{PREFIX}KEY"}  # of the command line
    assert set(re.findall(r"IMAGEPROMPT_[A-Z_]+[A-Z]", path.read_text())) <= known


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_document_leads_to_files_tests_and_commands_that_exist(path: Path) -> None:
    """Its links, the paths in its text, the tests and `make` targets that it names."""
    text = path.read_text()
    links = set(re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text))
    assert not {link for link in links if not (path.parent / link).exists()}
    paths = set(re.findall(r"`((?:service|workers|tests|docs|k8s|monitoring)/[\w./-]+)`", text))
    assert not {name for name in paths if not (ROOT / name).exists()}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([\w-]+)", text, re.MULTILINE)) <= targets
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert not {name for name in named if f"def {name}(" not in tests}


def test_every_secret_file_is_a_setting() -> None:
    """The file names that Settings reads from IMAGEPROMPT_SECRETS_DIR."""
    known = {PREFIX.lower() + name for name in Settings.model_fields}
    folder = ROOT / "k8s" / "chart" / "trial" / "secrets"
    assert {p.name for p in folder.glob("imageprompt_*")} <= known
    compose = yaml.safe_load(COMPOSE.read_text())
    for name, secret in compose["secrets"].items():
        assert (COMPOSE.parent / secret["file"]).is_file()
        assert name in known | {"redis.conf", "s3.json"}


def test_settings_have_values_that_settings_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value given to a process of ours passes the check that the process makes."""
    compose = yaml.safe_load(COMPOSE.read_text())
    given: list[dict[str, str]] = [s.get("environment", {}) for s in compose["services"].values()]
    given += [
        {v["name"]: v["value"] for v in container.get("env", [])}
        for _, spec in manifests.pod_specs(manifests.files())
        for container in manifests.containers(spec)
    ]
    for overlay in manifests.OVERLAYS:
        text = (manifests.K8S / "overlays" / overlay / "kustomization.yaml").read_text()
        for generator in yaml.safe_load(text)["configMapGenerator"]:
            given.append(dict(literal.split("=", 1) for literal in generator["literals"]))
    assert sum(len(values) for values in given) > 15
    for values in given:
        with monkeypatch.context() as patch:
            for name, value in values.items():
                patch.setenv(name, value)
            Settings()


def probes() -> list[tuple[str, str, int]]:
    """(who, path, port) of every HTTP probe of our containers."""
    found = []
    for name, spec in manifests.pod_specs(manifests.files()):
        for container in spec["containers"]:
            if not container["image"].startswith("imageprompt-"):
                continue
            ports = {p["name"]: p["containerPort"] for p in container.get("ports", [])}
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                if "httpGet" in container.get(kind, {}):
                    get = container[kind]["httpGet"]
                    found.append((name, get["path"], ports[get["port"]]))
    return found


def test_every_probe_asks_for_a_path_that_exists_on_the_port_that_listens() -> None:
    worker_paths = set(re.findall(r'"(/\w[\w/]*)"', (ROOT / "workers/monitoring.py").read_text()))
    assert len(probes()) == 4
    for name, path, port in probes():
        if name == "Deployment/api":
            assert path in routes()
            assert port == Settings.model_fields["port"].default
        else:
            assert path in worker_paths
            assert port == Settings.model_fields["worker_metrics_port"].default


def test_an_api_that_listens_on_loopback_only_is_alive_and_not_ready() -> None:
    """As it does without an API key: it is asked from inside whether it lives, as by Docker."""
    [health_check] = re.findall(r"(?ms)HEALTHCHECK.*?CMD (\[.*?\])$", API_IMAGE)
    deployment = next(m for m in manifests.files() if manifests.named(m) == "Deployment/api")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    for kind in ("startupProbe", "livenessProbe"):
        assert container[kind]["exec"]["command"] == json.loads(health_check)
    assert "host" not in container["readinessProbe"]["httpGet"], "the pod's own address"


def test_containers_listen_where_they_are_probed() -> None:
    """EXPOSE, the HEALTHCHECK's port and the address that the process binds."""
    for path in DOCKERFILES:
        text = path.read_text()
        exposed = {int(port) for port in re.findall(r"^EXPOSE (\d+)", text, re.MULTILINE)}
        name = "PORT" if path.name == "api.Dockerfile" else "WORKER_METRICS_PORT"
        set_to = {int(port) for port in re.findall(rf"{PREFIX}{name}=(\d+)", text)}
        assert exposed == set_to == {Settings.model_fields[name.lower()].default}
        checks = re.findall(r"r\.urlopen\(.*?environ\['(\w+)'\] \+ '([^']+)'", text)
        assert {check for check, _ in checks} == {PREFIX + name}
        assert {url for _, url in checks} == {"/healthz/live"}
        assert text.count(f"{PREFIX}HOST=0.0.0.0") == text.count("ENTRYPOINT")


def covered(path: str, rules: list[dict[str, Any]]) -> bool:
    """Whether an Ingress passes a path on."""
    return any(
        path == rule["path"]
        or (rule["pathType"] == "Prefix" and path.startswith(rule["path"].rstrip("/") + "/"))
        for rule in rules
    )


def public_paths(kind: str) -> list[dict[str, Any]]:
    """What an Ingress or an HTTPRoute passes on; the chart has the same (test_chart.py)."""
    entrance = next(m for m in manifests.files() if m["kind"] == kind)
    [rule] = entrance["spec"]["rules"]
    if kind == "Ingress":
        return list(rule["http"]["paths"])
    names = {"PathPrefix": "Prefix", "Exact": "Exact"}
    matches = [match["path"] for match in rule["matches"]]
    return [{"path": m["value"], "pathType": names[m["type"]]} for m in matches]


@pytest.mark.parametrize("kind", ["Ingress", "HTTPRoute"])
def test_every_public_route_is_passed_on_and_no_metrics(kind: str) -> None:
    hidden = {"/metrics"}
    for template, path in routes().items():
        assert covered(path, public_paths(kind)) == (template not in hidden), template


def test_uploads_up_to_the_limit_pass_the_ingress() -> None:
    ingress = next(m for m in manifests.files() if m["kind"] == "Ingress")
    size = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]
    limit = Settings.model_fields["max_body_bytes"].default
    assert int(size.removesuffix("m")) * 2**20 > limit


def test_prometheus_scrapes_the_ports_that_are_served() -> None:
    config = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())
    ports = {job["job_name"]: job["dns_sd_configs"][0]["port"] for job in config["scrape_configs"]}
    assert ports == {
        "api": Settings.model_fields["port"].default,
        "worker": Settings.model_fields["worker_metrics_port"].default,
    }


def test_entry_points_are_modules_that_exist() -> None:
    """`python -m NAME` in an image, a compose service or a Job."""
    texts = "\n".join(p.read_text() for p in SPEAKING)
    started = set(re.findall(r'python3?"?, "?-m"?, "?([\w.]+)', texts))
    modules = started - {"pip", "venv", "compileall"}
    assert modules == {"service", "workers", "workers.download"}
    for module in modules:
        base = ROOT / module.replace(".", "/")
        assert base.with_suffix(".py").is_file() or (base / "__main__.py").is_file()
