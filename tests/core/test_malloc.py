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
assert malloc.keep_freed()
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
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    # 20 times 20 blocks of 1,024 pages, of which a few may move. Not compared with glibc's own
    # threshold, which it raises by itself, now and then far enough.
    assert int(run.stdout) < 20 * 20 * 1024 / 50
