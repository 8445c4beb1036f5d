"""Keeps the C library from handing memory back to the kernel between two operators on a CPU.

glibc unmaps large blocks as soon as they are freed, so every operator of a large batch gets fresh
pages and faults them in one by one: some 4,000 faults and 5 % of a forward of 16 rows.
"""

import ctypes
import platform
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
LARGEST_BLOCK_BYTES: Final = 32 * 2**20
"""Blocks up to this size come from the heap; glibc takes no higher threshold."""
NEVER: Final = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the process keep freed blocks for itself; says whether the C library took it.

    It holds for the whole process. Numbers from glibc's malloc.h; see mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK_BYTES)) and bool(
        mallopt(M_TRIM_THRESHOLD, NEVER)
    )
