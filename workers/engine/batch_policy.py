"""Which rows take the next step. Pure arithmetic: no tensors, no threads, no clocks.

The rule, and why nobody starves:

1. Rows are grouped by what they must share (model, size). A turn runs rows of one group, up to
   the group's cap.
2. A fair turn goes to the group that was served longest ago, and in it to the jobs that came
   first; a later one takes only places that none before it can use. A shorter job that finds
   such places may end before those that came earlier. With G groups each is served at least once
   in G fair turns.
3. A job is short when all of it costs at most a quarter of the average job in hand. Short jobs
   may take express turns: small batches of their own, which a long queue does not slow down.
4. An express turn costs one credit; a fair turn gives two, up to eight. So at most eight turns
   in a row pass the long jobs by, and in the long run a third of all turns is fair. A job of r
   rows and n steps, of whose rows k fit under the cap at once, needs m = n ceil(r / k) turns for
   itself; as the first of its group it ends after at most 8 + 3 m G turns, whatever else arrives,
   G being the most groups there are meanwhile.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Final, Protocol, TypeVar

CREDIT: Final = 8
CREDIT_FOR_FAIRNESS: Final = 2
SHORT: Final = 4
"""A short job costs at most the average divided by this."""


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
    def places(self) -> int:
        """Places it takes in a batch at its next step."""


C = TypeVar("C", bound=Candidate)


class Policy:
    """Chooses rows turn by turn and remembers whom it has served.

    `cap` gives the most places of a batch for a group.
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
        # A group that is new counts as served when it came, or a stream of new ones would win.
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
        room = self._cap(rows[0].group) - rows[0].places
        chosen = [rows[0]]
        for row in rows[1:]:
            if row.places <= room:
                chosen.append(row)
                room -= row.places
        return chosen


def _short(rows: Sequence[C]) -> list[C]:
    jobs = {row.arrival: row.cost for row in rows}
    average = sum(jobs.values()) / len(jobs)
    return [row for row in rows if row.cost * SHORT <= average]
