"""Writes k8s/monitoring/prometheus-rule.yaml from monitoring/rules/: one source for both.

`python -m monitoring.operator_rules`. A test fails while the two disagree.
"""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "k8s" / "monitoring" / "prometheus-rule.yaml"
HEADER = (
    "# Made from monitoring/rules/ by `python -m monitoring.operator_rules`; change it there.\n"
)


def render() -> str:
    """Return the PrometheusRule object that holds every group of every rule file."""
    files = sorted((ROOT / "monitoring" / "rules").glob("*.yml"))
    groups = [
        group
        for file in files
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    ]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "imageprompt"},
        "spec": {"groups": groups},
    }
    return HEADER + yaml.safe_dump(rule, sort_keys=False, width=1000)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
