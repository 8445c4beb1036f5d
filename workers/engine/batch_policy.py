"""Which rows take the next step, and how large a batch may be. No tensors, threads or clocks.

The rule, and why no job starves:

1. Rows are grouped by what they must share (model, size). A turn runs rows of one group, up to
   the group's cap.
2. A fair turn goes to the group that was served longest ago, and in it to the jobs that came
   first; a later one takes only capacity that none before it can use. A shorter job that fits
   there may end before those that came earlier. With G groups each is served at least once
   in G fair turns.
3. A job is short when all of it costs at most a quarter of the average job that is running.
   Short jobs may take express turns: small batches of their own, which do not wait for long jobs.
4. An express turn costs one credit; a fair turn gives two, up to eight. So at most eight turns
   in a row go to short jobs only, and in the long run a third of all turns is fair. A job of r
   rows and n steps, of whose rows k fit under the cap at once, needs m = n ceil(r / k) turns for
   itself; as the first of its group it ends after at most 8 + 3 m G turns, whatever else arrives,
   G being the most groups there are meanwhile.

Caps: more entries than pay for themselves only make every job slower, so the cap of a group is the
smallest batch whose rate comes within a few percent of the best one measured at warm-up.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

CREDIT: Final = 8
CREDIT_FOR_FAIRNESS: Final = 2
SHORT: Final = 4
"""A short job costs at most the average divided by this."""
WORTH: Final = 0.95
"""A batch is large enough when it reaches this share of the best measured rate."""


class Candidate(Protocol):
    """A row that could take a step."""

    @property
    def group(self) -> Hashable:
        """Rows of one group may run together."""

    @property
    def arrival(self) -> int:
        """The number of its job, counted in order of arrival."""

    @property
    def cost(self) -> int:
        """What all of its job costs."""

    @property
    def entries(self) -> int:
        """Batch entries it takes at its next step."""


C = TypeVar("C", bound=Candidate)


class BatchPolicy:
    """Chooses the rows of each turn.

    `cap` gives the most entries of a batch for a group.
    """

    def __init__(self, cap: Callable[[Hashable], int]) -> None:
        self._cap = cap
        self._credit = CREDIT
        self._turn = 0
        self._served: dict[Hashable, int] = {}

    def choose(self, rows: Sequence[C]) -> list[C]:
        """The rows of the next turn, never none; `rows` holds at least one."""
        self._turn += 1
        ordered = sorted(rows, key=lambda row: row.arrival)
        # A new group counts as served when it arrived; otherwise a stream of new ones would win.
        present = {row.group for row in ordered}
        self._served = {group: self._served.get(group, self._turn) for group in present}
        short = _short(ordered)
        if 0 < len(short) < len(ordered) and self._credit > 0:
            self._credit -= 1
            group = self._longest_unserved(short)
            chosen = self._fill([row for row in short if row.group == group])
        else:
            self._credit = min(self._credit + CREDIT_FOR_FAIRNESS, CREDIT)
            group = self._longest_unserved(ordered)
            chosen = self._fill([row for row in ordered if row.group == group])
            self._served[group] = self._turn
        return chosen

    def _longest_unserved(self, rows: Sequence[C]) -> Hashable:
        return min(rows, key=lambda row: (self._served[row.group], row.arrival)).group

    def _fill(self, rows: Sequence[C]) -> list[C]:
        capacity = self._cap(rows[0].group) - rows[0].entries
        chosen = [rows[0]]
        for row in rows[1:]:
            if row.entries <= capacity:
                chosen.append(row)
                capacity -= row.entries
        return chosen


def _short(rows: Sequence[C]) -> list[C]:
    jobs = {row.arrival: row.cost for row in rows}
    average = sum(jobs.values()) / len(jobs)
    return [row for row in rows if row.cost * SHORT <= average]


def choose_cap(seconds: Mapping[int, float]) -> int:
    """The cap, from the measured time of one forward for each number of entries."""
    rates = {entries: entries / time for entries, time in seconds.items()}
    best = max(rates.values())
    return min(entries for entries, rate in rates.items() if rate >= WORTH * best)


class BatchCaps:
    """The caps of all groups; a size that was not measured takes its model's nearest by area.

    `limit` bounds them all.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._measured: dict[str, dict[tuple[int, int], int]] = {}
        self._lowered: dict[tuple[str, int, int], int] = {}

    def set(self, model: str, height: int, width: int, entries: int) -> None:
        """Record a measured cap."""
        self._measured.setdefault(model, {})[height, width] = entries

    def of(self, group: Any) -> int:
        """The most entries of a batch of `group`: model, size, and a deterministic job's id or "".

        A deterministic job gets the smallest: its bytes must not depend on what was measured.
        """
        model, height, width, alone = group
        if alone:
            return 2
        entries = self._lowered.get((model, height, width), self.limit)
        return max(2, min(entries, self._from_profile(model, height, width)))

    def lower(self, group: Any, entries: int) -> None:
        """Halve the cap of `group` after a batch of `entries` did not fit into memory."""
        self._lowered[group[:3]] = max(2, entries // 2)

    def _from_profile(self, model: str, height: int, width: int) -> int:
        measured = self._measured.get(model)
        if not measured:
            return self.limit
        area = height * width
        nearest = min(measured, key=lambda size: abs(size[0] * size[1] - area))
        # The same number of pixels at once: larger pictures use up the device sooner.
        return max(2, min(self.limit, measured[nearest] * nearest[0] * nearest[1] // area))
