"""When jobs will end: a pace learned from what is seen, and a look ahead through the queue.

Pure: numbers in, numbers out. It knows how workers batch: each forward takes every job they hold
one step further, so jobs that are held together share the time, and the next one waiting joins as
soon as one leaves.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

_DECAY: Final = 0.9
"""Weight of all that was seen before, at each new sight of the pace."""
_WARM_ROWS: Final = 16.0
"""Workers measure their rate at about so many rows; a step over few takes longer a row."""
_WARM_OVERHEAD_SECONDS: Final = 0.3
_MOST_OFF: Final = 3.0


@dataclass(frozen=True, slots=True)
class Work:
    """One job: rows of its forwards (counted in rows of the model's own size), and steps to go."""

    job_id: str
    rows: float
    steps: int


class Pace:
    """Seconds a step takes: a fixed part and a part for each row, fitted to what is seen."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._overhead = _WARM_OVERHEAD_SECONDS
        self._known_rate = 0.0
        self._off = 1.0

    def trust(self, rate: float) -> None:
        """Begin with the rows a second that workers measured when they warmed up."""
        if rate > 0 and rate != self._known_rate:
            self._known_rate = rate
            self._weight = self._x = self._y = self._xx = self._xy = 0.0
            self.see_step(1.0, 2 / rate)
            self.see_step(_WARM_ROWS, _WARM_ROWS / rate)

    def see_step(self, rows: float, seconds: float) -> None:
        """A step over so many rows took so long."""
        self._weight = self._weight * _DECAY + 1
        self._x = self._x * _DECAY + rows
        self._y = self._y * _DECAY + seconds
        self._xx = self._xx * _DECAY + rows * rows
        self._xy = self._xy * _DECAY + rows * seconds

    def see_overhead(self, seconds: float) -> None:
        """A job spent so long on what is no step: encoding, decoding, uploading."""
        self._overhead += (1 - _DECAY) * (seconds - self._overhead)

    def see_end(self, told_seconds: float, seconds: float) -> None:
        """A job that was first said to take `told_seconds` took so long."""
        ratio = min(_MOST_OFF, max(1 / _MOST_OFF, seconds / max(told_seconds, 0.1)))
        self._off += (1 - _DECAY) * (ratio - self._off)

    @property
    def correction(self) -> float:
        """By how much first words are off as a rule: more jobs come and share the time."""
        return self._off

    @property
    def is_known(self) -> bool:
        """Whether anything is known of the pace."""
        return self._weight > 0

    @property
    def overhead_seconds(self) -> float:
        """What a job takes beside its steps."""
        return self._overhead

    def step_seconds(self, rows: float) -> float:
        """What a step over so many rows is likely to take (weighted least squares)."""
        spread = self._weight * self._xx - self._x * self._x
        slope = (
            (self._weight * self._xy - self._x * self._y) / spread
            if spread > 1e-9 * self._xx
            else self._y / self._x
        )
        fixed = (self._y - slope * self._x) / self._weight
        if slope < 0:
            slope, fixed = 0.0, self._y / self._weight
        elif fixed < 0:
            slope, fixed = self._xy / self._xx, 0.0
        return fixed + slope * rows


def seconds_to_end(
    held: Sequence[Work],
    waiting: Sequence[Work],
    *,
    slots: int,
    step_seconds: Callable[[float], float],
    overhead_seconds: float,
) -> dict[str, float]:
    """Seconds from now until each job ends.

    `held` is what workers have, `waiting` the queue in order, `slots` how many jobs all workers
    hold at once.
    """
    ends: dict[str, float] = {}
    queue = list(reversed([*held[slots:], *waiting]))
    active = [(float(work.steps), work.job_id, work.rows) for work in held[:slots]]
    heapq.heapify(active)
    rows = sum(entry[2] for entry in active)
    clock = done_steps = 0.0
    while active or queue:
        while queue and len(active) < max(1, slots):
            work = queue.pop()
            heapq.heappush(active, (done_steps + work.steps, work.job_id, work.rows))
            rows += work.rows
        at_step, job_id, job_rows = heapq.heappop(active)
        clock += (at_step - done_steps) * step_seconds(rows)
        done_steps = at_step
        rows -= job_rows
        ends[job_id] = clock + overhead_seconds
    return ends
