"""The metrics that the service really has, and the ones that a query asks for."""

import re

from prometheus_client import CollectorRegistry

from service.core.metrics import ApiMetrics, WorkerMetrics


def registered() -> dict[str, frozenset[str]]:
    """Every sample name that API and workers can expose, with its label names."""
    found: dict[str, frozenset[str]] = {}
    for registry in (ApiMetrics().registry, WorkerMetrics().registry):
        found |= _samples(registry)
    return found


def _samples(registry: CollectorRegistry) -> dict[str, frozenset[str]]:
    samples: dict[str, frozenset[str]] = {}
    for collector in list(registry._collector_to_names):
        labels = frozenset(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            suffixes = {
                "counter": ("_total",),
                "histogram": ("_bucket", "_sum", "_count"),
            }.get(family.type, ("",))
            for suffix in suffixes:
                extra = {"le"} if suffix == "_bucket" else set()
                samples[family.name + suffix] = labels | extra
    return samples


def asked_for(query: str) -> dict[str, frozenset[str]]:
    """Metric names of ours in a PromQL query, with the labels that their matchers name."""
    found: dict[str, frozenset[str]] = {}
    for name, matchers in re.findall(r"\b(imageprompt[\w:]*)\s*(\{[^}]*\})?", query):
        labels = frozenset(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        found[name] = found.get(name, frozenset()) | labels
    return found


def grouped_by(query: str) -> frozenset[str]:
    """Labels in the `by (…)` clauses of a query."""
    clauses = re.findall(r"\bby\s*\(([^)]*)\)", query)
    return frozenset(label.strip() for clause in clauses for label in clause.split(",")) - {""}
