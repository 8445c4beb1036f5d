"""Resident memory of a process over time."""

import time
from pathlib import Path
from statistics import linear_regression


class Memory:
    """Samples of one process' memory, and how it grows."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []

    def sample(self, pid: int) -> None:
        """Note what the process holds now."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        self._samples.append((time.monotonic(), pages * 4096 / 2**20))

    def figures(self, warm_part: float) -> tuple[float, float]:
        """Last size in MiB, and growth in MiB a minute after the warm part."""
        warm = self._samples[int(len(self._samples) * warm_part) :]
        if len(warm) < 2:
            return self._samples[-1][1], 0.0
        slope = linear_regression(*zip(*warm, strict=True)).slope
        return warm[-1][1], slope * 60
