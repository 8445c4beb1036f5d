"""How many places a batch may have, for each model and size. Knows nothing of rows.

More rows than pay for themselves only make everybody slower: the cap is the smallest batch whose
rate comes within a few percent of the best one measured.
"""

from collections.abc import Mapping
from typing import Any, Final

WORTH: Final = 0.95
"""A batch is large enough when it reaches this share of the best measured rate."""


def choose(seconds: Mapping[int, float]) -> int:
    """The cap, from the measured time of one forward for each number of places."""
    rates = {places: places / time for places, time in seconds.items()}
    best = max(rates.values())
    return min(places for places, rate in rates.items() if rate >= WORTH * best)


class Caps:
    """The caps of all groups; a size that was not measured takes its model's nearest by area.

    `limit` bounds them all.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._measured: dict[str, dict[tuple[int, int], int]] = {}
        self._lowered: dict[tuple[str, int, int], int] = {}

    def set(self, model: str, height: int, width: int, places: int) -> None:
        """Record a measured cap."""
        self._measured.setdefault(model, {})[height, width] = places

    def of(self, group: Any) -> int:
        """The most places of a batch of `group`: model, size, and a deterministic job's id or ``.

        A deterministic job gets the smallest: what was measured must not show in its bytes.
        """
        model, height, width, alone = group
        if alone:
            return 2
        places = self._lowered.get((model, height, width), self.limit)
        return max(2, min(places, self._from_profile(model, height, width)))

    def lower(self, group: Any, places: int) -> None:
        """Halve the cap of `group` after a batch of `places` did not fit into memory."""
        self._lowered[group[:3]] = max(2, places // 2)

    def _from_profile(self, model: str, height: int, width: int) -> int:
        measured = self._measured.get(model)
        if not measured:
            return self.limit
        area = height * width
        nearest = min(measured, key=lambda size: abs(size[0] * size[1] - area))
        # The same number of pixels at once: larger pictures fill the device sooner.
        return max(2, min(self.limit, measured[nearest] * nearest[0] * nearest[1] // area))
