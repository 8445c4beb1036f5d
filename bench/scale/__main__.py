"""`python -m bench.scale`: GPUs for a load, what the autoscaler does, and where the next limit is.

Writes docs/scaling-*.png and out/bench/scale.md, which docs/scaling.md quotes. The devices are one
measured here (`python -m bench.scale.measure`) and an H200 at three published or derived speeds.
"""

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from bench.scale.autoscaler import Autoscaler, Policy
from bench.scale.simulation import Cluster, Device

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT: Final = Path(__file__).resolve().parents[2]
OUT: Final = ROOT / "out" / "bench"
DOCS: Final = ROOT / "docs"
STEPS: Final = 30
HOUR: Final = 3600.0
LOADS: Final = (0.5, 1, 2, 4, 8, 16, 32)
TARGET_SECONDS: Final = 10.0
COLD_START_SECONDS: Final = 180.0

# SDXL, 1024 x 1024, 30 steps, guidance and IP-Adapter, one picture. At this size a step is bound by
# arithmetic, so a batch shares little (`fixed`).
DEVICES: Final = {
    "H200, as fast as its matrix units (0.53 s)": Device(0.53, fixed=0.05, batch=4),
    "H200, this project's goal (1.0 s)": Device(1.0, fixed=0.1, batch=4),
    "H100 with TensorRT, as published (1.47 s)": Device(1.47, fixed=0.1, batch=4),
}
GOAL: Final = DEVICES["H200, this project's goal (1.0 s)"]


def poisson(rate: Callable[[float], float], most: float, seed: int) -> Iterator[float]:
    """Yield the times of arrivals whose rate (a second) changes with time, by thinning."""
    dice = random.Random(seed)  # noqa: S311  nothing secret
    now = 0.0
    while True:
        now += dice.expovariate(most)
        if dice.random() * most < rate(now):
            yield now


def latencies(cluster: Cluster) -> list[float]:
    """Seconds from arrival to end of every job, sorted."""
    return sorted(job.ended - job.arrived for job in cluster.jobs)


def p95(values: list[float]) -> float:
    """The 95th percentile of sorted values."""
    return values[min(int(0.95 * len(values)), len(values) - 1)]


def steady(device: Device, load: float, workers: int) -> float:
    """Run a fixed fleet under a steady load; the p95 of latency in seconds."""
    cluster = Cluster(device, workers=workers)
    cluster.run(poisson(lambda _: load, load, seed=1), steps=STEPS, until=max(1500 / load, 600))
    return p95(latencies(cluster))


def fleet(device: Device, load: float) -> int:
    """Find the fewest workers that keep p95 within the target, if any number does."""
    workers = max(1, math.ceil(load / device.capacity()))
    while steady(device, load, workers) > max(TARGET_SECONDS, 2 * device.job_seconds):
        workers += 1
    return workers


def day(hour: float) -> float:
    """Jobs a second over a day: quiet nights, a peak in the afternoon, a burst at noon."""
    wave = 2.0 + 1.8 * math.sin((hour - 9) / 24 * 2 * math.pi)
    return wave * (2.5 if 12 <= hour < 12.25 else 1.0)


def autoscaled(
    policy: Policy, *, cold: float = COLD_START_SECONDS, slots: int = 16
) -> tuple[Cluster, float, float]:
    """Run a day under a policy; the cluster, its p95 in seconds and its GPU hours."""
    device = Device(1.0, fixed=0.1, batch=4, slots=slots)
    cluster = Cluster(
        device,
        workers=max(policy.least, 1),
        cold_start_seconds=cold,
        scaler=Autoscaler(policy),
    )
    arrivals = poisson(lambda now: day(now / HOUR), 10, seed=2)
    cluster.run(arrivals, steps=STEPS, until=24 * HOUR)
    return cluster, p95(latencies(cluster)), cluster.worker_seconds(24 * HOUR) / HOUR


def fleets(devices: dict[str, Device]) -> list[str]:
    """Tabulate and draw workers for a load."""
    figure, axes = plt.subplots(figsize=(7, 4))
    lines = ["| jobs a second | " + " | ".join(devices) + " |", "|---" * (len(devices) + 1) + "|"]
    counts = {name: [fleet(device, load) for load in LOADS] for name, device in devices.items()}
    for name, numbers in counts.items():
        axes.plot(LOADS, numbers, marker="o", label=name)
    for position, load in enumerate(LOADS):
        cells = " | ".join(str(numbers[position]) for numbers in counts.values())
        lines.append(f"| {load:g} | {cells} |")
    axes.set(xscale="log", yscale="log", xlabel="jobs a second", ylabel="workers")
    axes.set_title(f"Workers for p95 within {TARGET_SECONDS:g} s")
    _save(figure, axes, "fleet")
    return lines


def policies() -> list[str]:
    """Compare what the trigger counts, its threshold, the slots and the cold start over a day."""
    shipped = Policy.shipped()
    cases: dict[str, tuple[Policy, dict[str, Any]]] = {
        "as shipped": (shipped, {}),
        "waiting jobs only": (Policy.shipped(count_running=False), {}),
        "threshold 2": (Policy.shipped(threshold=2.0), {}),
        "threshold 8": (Policy.shipped(threshold=8.0), {}),
        "threshold 16": (Policy.shipped(threshold=16.0), {}),
        "8 slots a worker": (shipped, {"slots": 8}),
        "no stabilisation": (Policy.shipped(stabilisation_seconds=0.0), {}),
        "cold start of 60 s": (shipped, {"cold": 60.0}),
        "cold start of 600 s": (shipped, {"cold": 600.0}),
        "down to zero": (Policy.shipped(least=0), {}),
    }
    lines = [
        "| policy | p50 s | p95 s | p99 s | GPU hours | workers, most |",
        "|---|---|---|---|---|---|",
    ]
    for name, (policy, options) in cases.items():
        cluster, high, hours = autoscaled(policy, **options)
        taken = latencies(cluster)
        most = max(tick.workers for tick in cluster.ticks)
        lines.append(
            f"| {name} | {taken[len(taken) // 2]:.1f} | {high:.1f} "
            f"| {taken[int(0.99 * len(taken))]:.1f} | {hours:.0f} | {most} |"
        )
        if name in ("as shipped", "waiting jobs only"):
            _draw_day(name, cluster)
    return lines


def _draw_day(name: str, cluster: Cluster) -> None:
    figure, axes = plt.subplots(figsize=(9, 4))
    hours = [tick.at / HOUR for tick in cluster.ticks]
    axes.plot(hours, [day(hour) for hour in hours], color="gray", label="jobs a second")
    axes.step(hours, [tick.warm for tick in cluster.ticks], label="warm workers")
    axes.plot(hours, [tick.waiting for tick in cluster.ticks], linewidth=0.7, label="waiting jobs")
    axes.set(xlabel="hour", ylim=(0, 40), title=f"A day, {name}")
    _save(figure, axes, "day-" + name.replace(" ", "-"))


def bursts() -> list[str]:
    """What a burst costs: three times the load of a warm fleet for five minutes."""
    lines = ["| cold start | p95 s | last job waits s |", "|---|---|---|"]
    for cold in (30.0, 180.0, 600.0):
        scaler = Autoscaler(Policy.shipped())
        cluster = Cluster(GOAL, workers=2, cold_start_seconds=cold, scaler=scaler)
        arrivals = poisson(lambda now: 4.0 if 600 <= now < 900 else 1.3, 4, seed=3)
        cluster.run(arrivals, steps=STEPS, until=1800)
        taken = latencies(cluster)
        lines.append(f"| {cold:.0f} s | {p95(taken):.1f} | {taken[-1]:.1f} |")
    return lines


def _save(figure: Any, axes: Any, name: str) -> None:
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / f"scaling-{name}.png", dpi=90)
    plt.close(figure)


def main() -> None:
    """Simulate and write."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    devices = dict(DEVICES)
    measured = OUT / "device.json"
    if measured.exists():
        device = Device(**json.loads(measured.read_text(encoding="utf-8")))
        devices[f"the bundled model here ({device.job_seconds:.1f} s)"] = device
    parts = {
        "Workers for a load": fleets(devices),
        "A day": policies(),
        "A burst": bursts(),
    }
    text = "\n".join(f"## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in parts.items())
    print(text)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "scale.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
