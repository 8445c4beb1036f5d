"""Resident memory of a process over time."""

import time
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Final

FLAT_MIB: Final = 0.5
"""What grows by less a minute is flat."""
FLAT_AFTER_MINUTES: Final = 5
"""Shorter runs are too short to call anything flat."""


class Memory:
    """Samples of one process' memory, and how it grows."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []

    def sample(self, pid: int) -> None:
        """Note what the process holds now."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        self._samples.append((time.monotonic(), pages * 4096 / 2**20))

    def figures(self, warm_part: float) -> tuple[float, float]:
        """Last size in MiB, and growth in MiB a minute after the warm part.

        The growth is the median of that between any two samples (Theil and Sen), so a heap that
        is once made larger is no trend.
        """
        warm = self._samples[int(len(self._samples) * warm_part) :]
        slopes = [
            (after - before) / (end - at) for (at, before), (end, after) in combinations(warm, 2)
        ]
        return warm[-1][1], 60 * median(slopes or [0.0])
