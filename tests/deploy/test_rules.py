"""Alerts fire when they should, stay silent when they should not, and lead to a page of help."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s import generate

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "monitoring"
ALERTS = [
    rule
    for group in yaml.safe_load((MONITORING / "rules" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
CASES = sorted((MONITORING / "tests").glob("*.test.yml"))


def promtool(*arguments: str, folder: Path = MONITORING) -> None:
    """Run promtool in a folder; skip where it is not installed."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on PATH; it comes with the Debian package `prometheus`")
    done = subprocess.run(
        [program, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_valid() -> None:
    promtool("check", "rules", "rules/recording.yml", "rules/alerts.yml")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_rules_behave_as_their_cases_say(path: Path) -> None:
    """silence.test.yml: none fires at a first start, at night, in an upgrade, beside an outage."""
    promtool("test", "rules", path.name, folder=path.parent)


def test_the_configuration_of_compose_is_valid(tmp_path: Path) -> None:
    """With the rule files where the container has them."""
    text = (MONITORING / "prometheus.yml").read_text()
    config = tmp_path / "prometheus.yml"
    config.write_text(text.replace("/etc/prometheus/rules", str(MONITORING / "rules")))
    promtool("check", "config", str(config))


def test_every_alert_has_a_case_that_fires() -> None:
    fired = {
        case["alertname"]
        for path in CASES
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    assert fired == {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    """Its runbook is a heading of docs/observability.md, and its severity is one of two."""
    assert alert["labels"]["severity"] in ("page", "ticket")
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert page == generate.RUNBOOKS
    text = (ROOT / "docs" / "observability.md").read_text()
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    assert anchor in {heading.strip("` ").lower() for heading in headings}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_is_about_one_namespace(alert: dict[str, Any]) -> None:
    """Whatever joins or leaves out labels keeps this one; else two installations would mix."""
    for clause in re.findall(r"\b(?:by|on) \(([^)]*)\)", alert["expr"]):
        assert "namespace" in clause.split(", "), clause
    aggregations = re.findall(r"\b(?:max|sum|count|min|group)\b(?! by \()", alert["expr"])
    assert not aggregations
