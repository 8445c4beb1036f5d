"""On a CPU the engine's process keeps the memory that operators free."""

import platform
import subprocess
import sys

import pytest

from service.core.settings import ROOT

SCRIPT = """
import resource, torch
from service.core import malloc
torch.set_num_threads(1)
if {keep}: assert malloc.keep_freed()
def churn():
    blocks = [torch.zeros(2**20).add_(1) for _ in range(20)]
for _ in range(3): churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="speaks to glibc only")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    """Blocks of some megabytes, as a batch needs them, fault their pages in once."""
    faults = {}
    for keep in (False, True):
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(keep=keep)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        faults[keep] = int(run.stdout)
    # A block that still moves faults 1,024 pages; without it all of them do, every time.
    assert faults[True] < faults[False] / 50
