"""The metrics that the service really has, and the ones that a query asks for."""

import re
from collections.abc import Iterable
from functools import cache

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from service.app import create_app
from service.core.metrics import ApiMetrics, WorkerMetrics
from service.core.settings import load_settings

Label = tuple[str, str]
"""Name and value."""


def registered() -> dict[str, frozenset[str]]:
    """Every sample name that API and workers can expose, with its label names."""
    found: dict[str, frozenset[str]] = {}
    api = ApiMetrics()
    for registry in (api.registry, api.redis_registry, WorkerMetrics().registry):
        found |= _samples(registry)
    return found


@cache
def at_first() -> dict[str, frozenset[Label]]:
    """The labels of every sample name before the first job, with one model."""
    api, worker = ApiMetrics(), WorkerMetrics()
    create_app(load_settings(), metrics=api)
    for metrics in (api, worker):
        metrics.start_at_zero(["shapes"])
    registries = (api.registry, api.redis_registry, worker.registry)
    families = (family for registry in registries for family in registry.collect())
    return _labels(sample for family in families for sample in family.samples)


def exposed(pages: Iterable[str]) -> dict[str, frozenset[Label]]:
    """The labels of every sample name on these pages of metrics."""
    return _labels(samples(pages))


def samples(pages: Iterable[str]) -> list[Sample]:
    """All that these pages of metrics say."""
    families = (family for page in pages for family in text_string_to_metric_families(page))
    return [sample for family in families for sample in family.samples]


def _labels(samples: Iterable[Sample]) -> dict[str, frozenset[Label]]:
    found: dict[str, frozenset[Label]] = {}
    for sample in samples:
        found[sample.name] = found.get(sample.name, frozenset()) | set(sample.labels.items())
    return found


def _samples(registry: CollectorRegistry) -> dict[str, frozenset[str]]:
    samples: dict[str, frozenset[str]] = {}
    for collector in list(registry._collector_to_names):
        labels = frozenset(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            suffixes = {
                "counter": ("_total",),
                "histogram": ("_bucket", "_sum", "_count"),
                "info": ("_info",),
            }.get(family.type, ("",))
            for suffix in suffixes:
                extra = {"le"} if suffix == "_bucket" else set()
                if family.type == "info":
                    extra = {label for sample in family.samples for label in sample.labels}
                samples[family.name + suffix] = labels | extra
    return samples


def asked_for(query: str) -> dict[str, frozenset[str]]:
    """Metric names of ours in a PromQL query, with the labels that their matchers name."""
    return {
        name: frozenset(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        for name, matchers in _selectors(query).items()
    }


def named_values(query: str) -> dict[str, frozenset[Label]]:
    """Metric names of ours in a PromQL query, with the label values that are named for them."""
    found: dict[str, frozenset[Label]] = {}
    for name, matchers in _selectors(query).items():
        exact = re.findall(r"(\w+)\s*!?=\s*\"([^\"]*)\"", matchers)
        choices = re.findall(r"(\w+)\s*=~\s*\"([\w|]+)\"", matchers)
        found[name] = frozenset(exact) | {(k, v) for k, vs in choices for v in vs.split("|")}
    return found


def _selectors(query: str) -> dict[str, str]:
    """Metric names of ours in a PromQL query, with all their matchers one behind another."""
    found: dict[str, str] = {}
    plain = re.sub(r"\b(?:by|on) \([^)]*\)", "", query)
    for name, matchers in re.findall(r"\b((?:imageprompt|process_)[\w:]*)\s*(\{[^}]*\})?", plain):
        found[name] = found.get(name, "") + matchers
    return found


def grouped_by(query: str) -> frozenset[str]:
    """Labels in the `by (…)` clauses of a query."""
    clauses = re.findall(r"\bby\s*\(([^)]*)\)", query)
    return frozenset(label.strip() for clause in clauses for label in clause.split(",")) - {""}
