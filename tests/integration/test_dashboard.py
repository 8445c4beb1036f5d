"""The dashboard's queries, asked of a real Prometheus that scrapes two installations."""

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import yaml

from service.cli import processes
from service.core.settings import ROOT
from tests.running import until
from tests.stack import Service

BOARD = json.loads((ROOT / "monitoring/grafana/dashboards/imageprompt.json").read_text())
QUIET = {"GPU memory"}
"""Panels without data on a machine without a GPU."""


def queries(namespace: str) -> Iterator[tuple[str, str]]:
    """Panel and PromQL, the dashboard's variables filled in as Grafana does it."""
    for panel in BOARD["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$namespace", namespace)
            yield panel["title"], query.replace("$__rate_interval", "1m")


@pytest.fixture(scope="module")
def services(make_service: Callable[..., Service]) -> dict[str, Service]:
    """In `a` an API and a worker that has done a job, in `b` an API alone."""
    busy, idle = make_service().start(), make_service()
    idle.start_api()
    busy.succeeded(busy.submit(steps=2))
    return {"a": busy, "b": idle}


@pytest.fixture(scope="module")
def prometheus(services: dict[str, Service], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The address of a Prometheus with the shipped rules; skips where it is not installed."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not on PATH; it comes with the Debian package `prometheus`")
    folder = tmp_path_factory.mktemp("prometheus")
    port = processes.free_port()
    targets = [
        {
            "targets": [str(httpx.URL(part.url).netloc, "ascii")],
            "labels": {"namespace": name, "job": "api" if part is service.api else "worker"},
        }
        for name, service in services.items()
        for part in (service.api, *service.workers)
    ]
    # Each group at once: one of 5 minutes is first evaluated at any moment of its first 5 minutes.
    for path in (ROOT / "monitoring" / "rules").glob("*.yml"):
        groups = [
            {name: value for name, value in group.items() if name != "interval"}
            for group in yaml.safe_load(path.read_text())["groups"]
        ]
        (folder / f"rules-{path.name}").write_text(yaml.safe_dump({"groups": groups}))
    config = {
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"},
        "rule_files": [f"{folder}/rules-*.yml"],
        "scrape_configs": [{"job_name": "all", "static_configs": targets}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = processes.spawn(
        [
            program,
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        log=folder / "prometheus.log",
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client
    processes.end(process, grace_seconds=30)


def ask(prometheus: httpx.Client, query: str) -> list[dict[str, Any]]:
    """The samples of a query; fails where Prometheus cannot evaluate it."""
    answer = prometheus.get("/api/v1/query", params={"query": query})
    assert answer.is_success, f"{query}: {answer.text}"
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


def test_every_panel_shows_what_a_real_run_left(
    prometheus: httpx.Client, services: dict[str, Service]
) -> None:
    busy = services["a"]
    until(lambda: _up(prometheus) == 3, what="three scraped processes")
    empty: set[str] = set()

    def all_drawn() -> bool:
        # Work in between: a rate needs a counter that has moved between two scrapes.
        busy.succeeded(busy.submit(steps=2))
        empty.clear()
        empty.update(title for title, query in queries("a") if not ask(prometheus, query))
        return empty <= QUIET

    until(all_drawn, what=lambda: f"data in every panel (empty at last: {empty - QUIET})")


def _up(prometheus: httpx.Client) -> float:
    try:
        if not prometheus.get("/-/ready").is_success:
            return 0
        return float(ask(prometheus, "sum(up)")[0]["value"][1])
    except (httpx.HTTPError, IndexError):
        return 0


def test_each_namespace_has_figures_of_its_own(prometheus: httpx.Client) -> None:
    until(lambda: _up(prometheus) == 3, what="three scraped processes")

    def workers(namespace: str) -> dict[str, str]:
        found = ask(prometheus, dict(queries(namespace))["Warm workers"])
        return {sample["metric"]["namespace"]: sample["value"][1] for sample in found}

    until(lambda: workers(".*") == {"a": "1", "b": "0"}, what="both namespaces")
    assert workers("a") == {"a": "1"}
    assert workers("b") == {"b": "0"}
    choices = ask(prometheus, "count by (namespace) (imageprompt_build_info)")
    assert {sample["metric"]["namespace"] for sample in choices} == {"a", "b"}
    for namespace in ("a", "b", "a|b"):
        for title, query in queries(namespace):
            for sample in ask(prometheus, query):
                told = sample["metric"].get("namespace")
                assert told is None or told in namespace.split("|"), title
