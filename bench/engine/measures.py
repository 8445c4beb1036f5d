"""The measurements of the engine bench. Contenders take turns, and medians are kept.

So whatever else the machine does meets all of them alike.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from bench.engine.contenders import Batched, Contender, PlainProcess, at_once, over_time
from bench.engine.subject import Subject
from bench.engine.tasks import LORAS
from workers.engine.api import EngineJob
from workers.engine.engine import Engine

AT_ONCE = (1, 4, 8, 16)
IN_A_LOOP = 8
"""Jobs of the plain pipelines, whose rate does not depend on their number."""
PRESSURE = 0.6
"""Jobs of the mixed load come this share of their mean time alone apart: too fast for a queue."""


@dataclass
class Results:
    """Every figure of a run: `figures[measure][contender]`, with a unit for each measure."""

    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def add(self, measure: str, unit: str, values: Mapping[str, float]) -> None:
        """Take in the figures of one measure."""
        self.units[measure] = unit
        self.figures[measure] = dict(values)


class Bench:
    """Runs the measurements on one subject."""

    def __init__(self, subject: Subject, engine: Engine, plain: PlainProcess) -> None:
        self._subject = subject
        self._plain = plain
        self._engine = engine
        self._batched = Batched(engine)
        self._seeds = itertools.count(1)
        self.results = Results()

    @property
    def parts(self) -> Mapping[str, Callable[[], None]]:
        """Every part of the bench by its name, in order."""
        return {
            "one job alone": self._single,
            "many jobs at once": self._bursts,
            "jobs of nine tasks at once": self._tasks,
            "LoRAs in a batch": self._loras,
            "a mixed load": self._mixed,
            "a short job behind seven long ones": self._short_behind_long,
            "embedding cache": self._cache,
        }

    def run(self, only: Sequence[str] = ()) -> Iterator[str]:
        """Measure everything, or some parts; names each before it begins."""
        for name, measure in self.parts.items():
            if not only or name in only:
                yield name
                measure()

    def _single(self) -> None:
        def job() -> EngineJob:
            subject = self._subject
            return subject.job(next(self._seeds), size=subject.single, steps=subject.steps)

        seconds = self._interleaved(
            {
                "plain": lambda: at_once(self._plain, [job()]),
                "engine": lambda: at_once(self._batched, [job()]),
            },
            warm=True,
        )
        self.results.add("one job alone", "s", seconds)

    def _bursts(self) -> None:
        short = self._subject.short

        def together(contender: Contender, count: int, steps: int = 0) -> None:
            at_once(contender, self._burst(count, steps))

        runs: dict[str, Callable[[], object]] = {"plain": partial(together, self._plain, IN_A_LOOP)}
        for count in AT_ONCE:
            runs[f"engine, {count}"] = partial(together, self._batched, count)
        runs["plain, short"] = partial(together, self._plain, IN_A_LOOP, short)
        runs["engine, short"] = partial(together, self._batched, IN_A_LOOP, short)
        seconds = self._interleaved(runs)
        for count in AT_ONCE:
            rates = {"plain": IN_A_LOOP / seconds["plain"]}
            rates["engine"] = count / seconds[f"engine, {count}"]
            self.results.add(f"{count} jobs at once", "pictures/s", rates)
        rates = {who: IN_A_LOOP / seconds[f"{who}, short"] for who in ("plain", "engine")}
        self.results.add(f"{IN_A_LOOP} jobs of {short} steps at once", "pictures/s", rates)

    def _tasks(self) -> None:
        """Jobs of nine tasks; a picture a second of plain pipelines that are all loaded."""

        def jobs() -> list[EngineJob]:
            seed = next(self._seeds)
            return self._subject.tasks(1_000_000 + 100 * seed)

        seconds = self._interleaved(
            {
                "plain": lambda: at_once(self._plain, jobs()),
                "engine": lambda: at_once(self._batched, jobs()),
            },
            warm=True,
        )
        rates = {who: len(jobs()) / spent for who, spent in seconds.items()}
        self.results.add("jobs of nine tasks at once", "pictures/s", rates)

    def _loras(self) -> None:
        """A step of eight rows of three jobs, of which two have LoRAs or none has."""
        rows = (3, 3, 2)
        wanted = {"without": ((), (), ()), "with": ((LORAS[0],), (LORAS[1],), ())}
        spent: dict[str, list[float]] = {name: [] for name in wanted}
        subject = self._subject
        for _ in range(2 * subject.repeats):
            for name, loras in wanted.items():
                tickets = [
                    self._engine.submit(
                        subject.job(
                            next(self._seeds),
                            size=subject.burst,
                            steps=subject.burst_steps,
                            num_images=count,
                            lora=lora,
                        )
                    )
                    for count, lora in zip(rows, loras, strict=True)
                ]
                seconds = max(ticket.result().denoise_seconds for ticket in tickets)
                spent[name].append(seconds / subject.burst_steps)
        step = {name: statistics.median(them) for name, them in spent.items()}
        name = "a step of 8 rows, 6 of them with one of two LoRAs"
        self.results.add(name, "s", {f"{who} LoRAs": one for who, one in step.items()})
        self.results.add(f"{name}, against none", "x", {"engine": step["with"] / step["without"]})

    def _mixed(self) -> None:
        jobs = self._subject.mixed()
        alone = statistics.median(at_once(self._plain, jobs[:1]) for _ in range(2))
        work = statistics.mean(job.request.steps for job in jobs) / jobs[0].request.steps
        gap = PRESSURE * alone * work
        latencies: dict[str, list[float]] = {"one at a time": [], "engine": []}
        for _ in range(max(1, self._subject.repeats - 1)):
            latencies["one at a time"] += over_time(self._plain, jobs, gap)
            latencies["engine"] += over_time(self._batched, jobs, gap)
        for name, share in (("p50", 50), ("p95", 95)):
            self.results.add(
                f"mixed load, {name} latency",
                "s",
                {who: float(np.percentile(them, share)) for who, them in latencies.items()},
            )

    def _short_behind_long(self) -> None:
        subject = self._subject
        size = subject.burst

        def short() -> EngineJob:
            return subject.job(next(self._seeds), size=size, steps=subject.short)

        alone = self._interleaved(
            {
                "one at a time": lambda: at_once(self._plain, [short()]),
                "engine": lambda: at_once(self._batched, [short()]),
            }
        )
        behind = {"one at a time": self._behind(self._plain, short())}
        behind["engine"] = statistics.median(
            self._behind(self._batched, short()) for _ in range(subject.repeats)
        )
        self.results.add("short job alone", "s", alone)
        self.results.add("short job behind seven long", "s", behind)
        self.results.add(
            "its time against alone", "x", {name: behind[name] / alone[name] for name in alone}
        )

    def _behind(self, contender: Contender, short: EngineJob) -> float:
        """Latency of a short job that comes when seven long ones are on their way."""
        subject = self._subject
        long = [
            contender.submit(subject.job(next(self._seeds), size=subject.burst, steps=subject.long))
            for _ in range(7)
        ]
        time.sleep(2 * self.results.figures["one job alone"]["engine"] / subject.steps)
        latency = at_once(contender, [short])
        for future in long:
            future.result()
        return latency

    def _cache(self) -> None:
        subject = self._subject
        for adapter in ("base", "plus"):
            seconds: dict[str, list[float]] = {"miss": [], "hit": []}
            for _ in range(3 * subject.repeats):
                job = subject.job(next(self._seeds), size=subject.burst, steps=1, adapter=adapter)
                for name, them in seconds.items():
                    result = self._engine.submit(job).result()
                    assert result.image_embedding_cache == name
                    them.append(result.encode_seconds)
            self.results.add(
                f"inputs and encoders, {adapter}",
                "s",
                {f"cache {name}": statistics.median(them) for name, them in seconds.items()},
            )

    def _burst(self, count: int, steps: int = 0) -> list[EngineJob]:
        subject = self._subject
        steps = steps or subject.burst_steps
        return [
            subject.job(next(self._seeds), size=subject.burst, steps=steps) for _ in range(count)
        ]

    def _interleaved(
        self, runs: Mapping[str, Callable[[], object]], *, warm: bool = False
    ) -> dict[str, float]:
        """The median time of each, taken in turns."""
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        if warm:
            for run in runs.values():
                run()
        for _ in range(self._subject.repeats):
            for name, run in runs.items():
                seconds[name].append(timed(run))
        return {name: statistics.median(them) for name, them in seconds.items()}


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
