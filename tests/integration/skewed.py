"""`python -m tests.integration.skewed MODULE`: a process whose clock is CLOCK_OFFSET seconds off.

Its time.time is moved before anything of the service is imported.
"""

import os
import runpy
import sys
import time

REAL, OFFSET = time.time, float(os.environ["CLOCK_OFFSET"])


def skewed() -> float:
    """The time that this process believes in (seconds since the epoch)."""
    return REAL() + OFFSET


if __name__ == "__main__":
    time.time = skewed
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
