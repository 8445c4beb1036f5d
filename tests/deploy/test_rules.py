"""Alerts fire when they should, stay silent when they should not, and lead to a page of help."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "monitoring"
ALERTS = yaml.safe_load((MONITORING / "rules" / "alerts.yml").read_text())["groups"][0]["rules"]


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


def test_rules_behave_as_their_cases_say() -> None:
    promtool("test", "rules", "rules.test.yml", folder=MONITORING / "tests")


def test_the_configuration_of_compose_is_valid(tmp_path: Path) -> None:
    """With the rule files where the container has them."""
    text = (MONITORING / "prometheus.yml").read_text()
    config = tmp_path / "prometheus.yml"
    config.write_text(text.replace("/etc/prometheus/rules", str(MONITORING / "rules")))
    promtool("check", "config", str(config))


def test_every_alert_has_a_case_that_fires() -> None:
    tests = yaml.safe_load((MONITORING / "tests" / "rules.test.yml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    assert fired == {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    """Its runbook link is a heading of docs/observability.md, and its severity is one of two."""
    assert alert["labels"]["severity"] in ("page", "ticket")
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), flags=re.MULTILINE)
    assert anchor in {heading.strip("` ").lower() for heading in headings}
