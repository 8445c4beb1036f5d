"""Makes the Grafana dashboard of grafana/panels.yaml; `python -m k8s.generate` writes its JSON.

`$datasource` is the Prometheus to ask and `$namespace` the installations to show. Outside of
Kubernetes no series has that label, and the choice "All" matches them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

PANELS: Final = Path(__file__).parent / "grafana" / "panels.yaml"
COLUMNS: Final = 24
"""Of Grafana's grid."""
HEIGHT: Final = 8
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
MATCHER: Final = 'namespace=~"$namespace"'
LAST_VALUE: Final = {"reduceOptions": {"calcs": ["lastNotNull"]}}
VARIABLES: Final = [
    {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
    {
        "name": "namespace",
        "label": "Namespace",
        "type": "query",
        "datasource": SOURCE,
        "query": "label_values(imageprompt_build_info, namespace)",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    },
]


def render() -> str:
    """Return the dashboard's JSON."""
    board = {
        "uid": "imageprompt",
        "title": "Image prompts",
        "tags": ["imageprompt"],
        "schemaVersion": 41,
        "version": 2,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": VARIABLES},
        "annotations": {"list": []},
        "panels": list(_panels()),
    }
    return _compact(board) + "\n"


def _panels() -> Iterator[dict[str, Any]]:
    number, y = 0, 0
    for title, panels in yaml.safe_load(PANELS.read_text(encoding="utf-8")).items():
        number += 1
        row = {"id": number, "type": "row", "title": title, "collapsed": False, "panels": []}
        yield row | {"gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y}}
        y, x = y + 1, 0
        for panel in panels:
            number += 1
            width = panel.get("width", HEIGHT)
            if x + width > COLUMNS:
                x, y = 0, y + HEIGHT
            yield _panel(panel, number) | {"gridPos": {"h": HEIGHT, "w": width, "x": x, "y": y}}
            x += width
        y += HEIGHT


def _panel(panel: dict[str, Any], number: int) -> dict[str, Any]:
    kind = panel.get("kind", "timeseries")
    queries = enumerate(panel["queries"].items())
    return {
        "id": number,
        "type": kind,
        "title": panel["title"],
        "description": panel["about"],
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": panel["unit"], "min": 0}, "overrides": []},
        "options": panel.get("options", LAST_VALUE if kind == "stat" else {}),
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": SOURCE,
                "expr": query.replace("$NS", MATCHER),
                "legendFormat": legend,
            }
            for place, (legend, query) in queries
        ],
    }


def _compact(value: Any, indent: int = 0) -> str:
    """JSON with one line for whatever fits into 160 characters."""
    flat = json.dumps(value)
    if len(flat) + indent <= 160 or not isinstance(value, dict | list):  # noqa: PLR2004  as it says
        return flat
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {_compact(item, indent + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(pad + part for part in parts) + "\n" + " " * indent + "}"
    parts = [_compact(item, indent + 1) for item in value]
    return "[\n" + ",\n".join(pad + part for part in parts) + "\n" + " " * indent + "]"
