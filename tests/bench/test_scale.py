"""The simulation agrees with what is known in closed form, and with the rules it imitates."""

import random
import statistics
from collections.abc import Iterator

import pytest

from bench.scale.autoscaler import Autoscaler, Policy
from bench.scale.simulation import Cluster, Device


def poisson(rate: float, seed: int = 1) -> Iterator[float]:
    dice = random.Random(seed)
    now = 0.0
    while True:
        now += dice.expovariate(rate)
        yield now


def test_one_job_at_a_time_waits_as_long_as_queueing_theory_says() -> None:
    """M/D/1: the mean wait is load / (2 (1 - load)) of a service time."""
    device = Device(job_seconds=1.0, fixed=0.0, around_seconds=0.0, batch=1, slots=1)
    for load in (0.5, 0.8):
        cluster = Cluster(device, workers=1)
        cluster.run(poisson(load), steps=1, until=60_000)
        wait = statistics.fmean(job.started - job.arrived for job in cluster.jobs)
        assert wait == pytest.approx(load / (2 * (1 - load)), rel=0.06)


def test_a_job_alone_takes_its_own_time() -> None:
    device = Device(job_seconds=3.0, around_seconds=0.5)
    cluster = Cluster(device, workers=2)
    cluster.run([10.0], steps=30, until=100)
    assert cluster.jobs[0].ended == pytest.approx(13.5)


def test_a_full_worker_ends_as_many_jobs_as_its_batches_allow() -> None:
    device = Device(job_seconds=1.0, fixed=0.5, batch=8, slots=8)
    cluster = Cluster(device, workers=1)
    cluster.run([0.0] * 800, steps=30, until=1)
    last = max(job.ended for job in cluster.jobs)
    assert 800 / last == pytest.approx(device.capacity(), rel=0.02)
    assert device.capacity() > 1.5


def test_every_job_ends_though_workers_come_and_go() -> None:
    scaler = Autoscaler(Policy.shipped(stabilisation_seconds=60, down_seconds=30))
    cluster = Cluster(Device(1.0), workers=1, cold_start_seconds=45, scaler=scaler)
    bursts = sorted(start + second for start in (0, 900) for second in poisson_until(4.0, 120))
    cluster.run(bursts, steps=30, until=2400)
    assert len(cluster.jobs) == len(bursts)
    assert all(job.ended < 3000 for job in cluster.jobs)
    counts = [tick.workers for tick in cluster.ticks]
    assert max(counts) > 2
    assert counts[-1] == 1


def poisson_until(rate: float, end: float) -> list[float]:
    found = []
    for when in poisson(rate):
        if when > end:
            return found
        found.append(when)
    return found


def test_a_lull_shorter_than_the_window_takes_no_worker_away() -> None:
    scaler = Autoscaler(Policy.shipped(threshold=8.0, stabilisation_seconds=600))
    assert scaler(0, 0, 32, 4) == 4
    assert scaler(300, 0, 0, 4) == 4
    assert scaler(590, 0, 0, 4) == 4
    assert scaler(601, 0, 0, 4) == 3, "then one by one"
    assert scaler(616, 0, 0, 3) == 3


def test_the_fleet_at_most_doubles_at_once_and_keeps_to_its_bounds() -> None:
    scaler = Autoscaler(Policy.shipped(threshold=8, least=1, most=8))
    assert scaler(0, 1000, 0, 1) == 3
    assert scaler(15, 1000, 0, 3) == 4
    assert scaler(45, 1000, 0, 4) == 8
    assert scaler(90, 1000, 0, 8) == 8
