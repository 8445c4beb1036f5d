"""KEDA and the HorizontalPodAutoscaler as `k8s/components/keda/scaled-object.yaml` sets them up.

The rules are those of Kubernetes: desired = ceil(metric / target), a tolerance of a tenth,
policies that bound how fast, and the highest wish of a window before anything is taken away.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

MANIFEST: Final = Path(__file__).resolve().parents[2] / "k8s/components/keda/scaled-object.yaml"
TOLERANCE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds and pace of the scaler. Seconds, jobs, workers."""

    threshold: float
    least: int
    most: int
    stabilisation_seconds: float
    down_workers: int
    down_seconds: float
    count_running: bool = True

    @classmethod
    def shipped(cls, **changes: Any) -> "Policy":
        """Read the policy that the manifest ships, with some changes."""
        spec = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))["spec"]
        down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        values: dict[str, Any] = {
            "threshold": float(spec["triggers"][0]["metadata"]["threshold"]),
            "least": spec["minReplicaCount"],
            "most": spec["maxReplicaCount"],
            "stabilisation_seconds": down["stabilizationWindowSeconds"],
            "down_workers": down["policies"][0]["value"],
            "down_seconds": down["policies"][0]["periodSeconds"],
        }
        return cls(**(values | changes))


@dataclass(slots=True)
class Autoscaler:
    """A `bench.scale.simulation.Scaler` with a memory."""

    policy: Policy
    wishes: deque[tuple[float, int]] = field(default_factory=deque)
    ups: deque[tuple[float, int]] = field(default_factory=deque)
    downs: deque[tuple[float, int]] = field(default_factory=deque)

    def __call__(self, now: float, waiting: int, running: int, workers: int) -> int:
        """How many workers to have from now on."""
        policy = self.policy
        metric = waiting + running if policy.count_running else waiting
        wish = math.ceil(metric / policy.threshold)
        if workers and abs(metric / policy.threshold / workers - 1) <= TOLERANCE:
            wish = workers
        wish = min(max(wish, policy.least), policy.most)
        _forget(self.wishes, now - policy.stabilisation_seconds)
        self.wishes.append((now, wish))
        if wish > workers:
            return workers + self._allowed_up(now, wish - workers, workers)
        highest = max(wanted for _, wanted in self.wishes)
        if highest < workers:
            return workers - self._allowed_down(now, workers - highest)
        return workers

    def _allowed_up(self, now: float, more: int, workers: int) -> int:
        """Double, or two more, within 30 s."""
        _forget(self.ups, now - 30)
        already = sum(count for _, count in self.ups)
        allowed = min(more, max(max(workers, 2) - already, 0))
        if allowed:
            self.ups.append((now, allowed))
        return allowed

    def _allowed_down(self, now: float, fewer: int) -> int:
        _forget(self.downs, now - self.policy.down_seconds)
        already = sum(count for _, count in self.downs)
        allowed = min(fewer, max(self.policy.down_workers - already, 0))
        if allowed:
            self.downs.append((now, allowed))
        return allowed


def _forget(kept: deque[tuple[float, int]], before: float) -> None:
    while kept and kept[0][0] <= before:
        kept.popleft()
