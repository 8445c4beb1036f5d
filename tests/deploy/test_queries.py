"""Every query on the dashboard, in a rule and in the autoscaler asks for metrics that exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import exposition, manifests

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "monitoring" / "grafana" / "dashboards" / "imageprompt.json"
RULES = [
    rule
    for path in sorted((ROOT / "monitoring" / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
TARGET_LABELS = {"instance", "job", "namespace", "pod"}
FOREIGN = {
    "container_memory_working_set_bytes",
    "keda_scaler_detail_errors_total",
    "kube_horizontalpodautoscaler_spec_max_replicas",
    "kube_horizontalpodautoscaler_status_current_replicas",
    "kube_pod_container_resource_limits",
    "kubelet_volume_stats_capacity_bytes",
    "kubelet_volume_stats_used_bytes",
}
"""Metrics of KEDA 2.19, kube-state-metrics 2 and the kubelet, by their documentation."""


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard that draw something."""
    found = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


QUERIES = {
    **{
        f"panel {panel['title']} {target['refId']}": target["expr"]
        for panel in panels()
        for target in panel["targets"]
    },
    **{f"rule {rule.get('record') or rule['alert']}": rule["expr"] for rule in RULES},
    **{
        f"trigger of {manifests.named(m)}": trigger["metadata"]["query"]
        for m in manifests.files()
        if m["kind"] == "ScaledObject"
        for trigger in m["spec"]["triggers"]
    },
}


@pytest.mark.parametrize("name", QUERIES)
def test_the_query_asks_for_metrics_and_labels_that_exist(name: str) -> None:
    query = QUERIES[name]
    foreign = set(re.findall(r"\b(?:container|keda|kube|kubelet)_\w+", query))
    assert foreign <= FOREIGN
    asked = exposition.asked_for(query)
    assert asked or foreign, f"{query} asks for none of our metrics"
    for metric, labels in asked.items():
        has = labels_of(metric)
        assert labels <= has, f"{metric} has no such labels: {labels}"
        if len(asked) == 1 and not foreign:
            grouped = exposition.grouped_by(query)
            assert grouped <= has, f"{metric} is grouped by {grouped}"


def labels_of(metric: str) -> frozenset[str]:
    """Label names of an exposed or a recorded metric."""
    if metric in RECORDED:
        return exposition.grouped_by(RECORDED[metric]) - {"le"}
    metrics = exposition.registered()
    assert metric in metrics, f"{metric} is not exposed by anything"
    return metrics[metric] | TARGET_LABELS


@pytest.mark.parametrize("name", QUERIES)
def test_the_label_values_that_a_query_names_are_there_before_the_first_job(name: str) -> None:
    """A wrong value would match nothing for ever; a counter that is born late hides its first."""
    known = exposition.at_first()
    for metric, named in exposition.named_values(QUERIES[name]).items():
        sources = exposition.asked_for(RECORDED.get(metric, metric))
        there = frozenset[exposition.Label]().union(*(known.get(s, ()) for s in sources))
        missing = {label for label in named - there if label[0] not in TARGET_LABELS}
        assert not missing, f"{metric} never has {missing}"


def test_a_metric_that_is_gone_is_noticed() -> None:
    assert "imageprompt_no_such_total" not in exposition.registered()
    assert exposition.asked_for('rate(imageprompt_x_total{model="a"}[5m])') == {
        "imageprompt_x_total": frozenset({"model"})
    }
    assert exposition.named_values('imageprompt_x{model!="a",b=~"c"} + imageprompt_y') == {
        "imageprompt_x": frozenset({("model", "a"), ("b", "c")}),
        "imageprompt_y": frozenset(),
    }


def test_every_metric_stands_in_the_documentation_and_the_other_way_round() -> None:
    text = (ROOT / "docs" / "observability.md").read_text()
    documented = set(re.findall(r"^\| `(imageprompt_\w+)`", text, flags=re.MULTILINE))
    families = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name in exposition.registered()
        if name.startswith("imageprompt")
    }
    assert documented == families


def test_panels_have_titles_units_and_the_chosen_data_source() -> None:
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles))
    for panel in panels():
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for asking in (panel, *panel["targets"]):
            assert asking["datasource"]["uid"] == "${datasource}", panel["title"]
    source = yaml.safe_load(
        (ROOT / "monitoring/grafana/provisioning/datasources/prometheus.yaml").read_text()
    )["datasources"][0]
    assert (source["type"], source["uid"]) == ("prometheus", "prometheus")


def test_the_dashboard_lets_choose_data_source_and_namespaces() -> None:
    variables = {v["name"]: v for v in json.loads(DASHBOARD.read_text())["templating"]["list"]}
    assert variables.keys() == {"datasource", "namespace"}
    assert variables["namespace"]["allValue"] == ".*", "series without a namespace, too"
    for panel in panels():
        for target in panel["targets"]:
            selectors = re.findall(r"\b(?:imageprompt|process)[\w:]*(\{[^}]*\})?", target["expr"])
            for matchers in filter(None, [m or "{}" for m in selectors]):
                assert 'namespace=~"$namespace"' in matchers, target["expr"]
