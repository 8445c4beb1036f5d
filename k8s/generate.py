"""Writes every file of the deployment that is made from another one: `python -m k8s.generate`.

- monitoring/rules/ becomes the PrometheusRule that chart and kustomize share;
- monitoring/dashboard.py becomes the Grafana dashboard, for compose and for clusters;
- k8s/chart/values.yaml becomes the table in the chart's README.

`--runbooks URL` sets where docs/observability.md is published; alerts link to its sections. Tests
fail while a file differs from what this writes.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml

from monitoring import dashboard

ROOT: Final = Path(__file__).resolve().parents[1]
CHART: Final = ROOT / "k8s" / "chart"
RUNBOOKS: Final = "https://imageprompt.example.com/docs/observability"
"""Stands in monitoring/rules/ and is replaced by the address that an operator names."""
RULE_HEADER: Final = "# Made from monitoring/rules/ by `python -m k8s.generate`; change it there.\n"


def prometheus_rule(runbooks: str) -> str:
    """Return the PrometheusRule object that holds every group of every rule file."""
    groups = [
        group
        for file in sorted((ROOT / "monitoring" / "rules").glob("*.yml"))
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    ]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "imageprompt"},
        "spec": {"groups": groups},
    }
    text = yaml.safe_dump(rule, sort_keys=False, width=1000)
    return RULE_HEADER + text.replace(RUNBOOKS, runbooks)


def chart_readme() -> str:
    """Return the chart's README with a table of all values, their defaults and comments."""
    rows = "\n".join(
        f"| `{path}` | `{default}` | {comment} |"
        for path, default, comment in _values((CHART / "values.yaml").read_text(encoding="utf-8"))
    )
    return (CHART / "README.md.in").read_text(encoding="utf-8").replace("TABLE", rows)


def _values(text: str) -> Iterator[tuple[str, str, str]]:
    """(path, default, comment) of each line of values.yaml that has a default of its own."""
    parents: list[tuple[int, str]] = []
    comments: list[str] = []
    list_indent = -1
    for line in text.splitlines():
        match = re.match(r"( *)([\w.]+): ?(.*)$", line)
        if not line.strip():
            comments = []
        elif line.lstrip().startswith("#"):
            comments.append(line.strip("# "))
        elif line.lstrip().startswith("- "):
            list_indent = line.index("-")  # its key has the comment
        elif match and (list_indent < 0 or len(match[1]) <= list_indent - 2):
            list_indent = -1
            parents = [parent for parent in parents if parent[0] < len(match[1])]
            path = ".".join([*(name for _, name in parents), match[2]])
            if match[3] or comments:
                yield path, match[3].replace("|", r"\|") or "see values.yaml", " ".join(comments)
            parents.append((len(match[1]), match[2]))
            comments = []


def files(runbooks: str = RUNBOOKS) -> dict[Path, str]:
    """Return every generated file with its text."""
    board = dashboard.render()
    return {
        ROOT / "monitoring" / "grafana" / "dashboards" / "imageprompt.json": board,
        CHART / "files" / "imageprompt.json": board,
        CHART / "files" / "prometheus-rule.yaml": prometheus_rule(runbooks),
        CHART / "README.md": chart_readme(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the generated files of the deployment.")
    parser.add_argument(
        "--runbooks", default=RUNBOOKS, help="where docs/observability.md is published"
    )
    for path, text in files(parser.parse_args().runbooks).items():
        path.write_text(text, encoding="utf-8")
