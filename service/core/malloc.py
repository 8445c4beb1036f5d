"""When the C library returns freed memory to the system (malloc trim); glibc only.

Numbers from glibc's malloc.h; see mallopt(3). Each holds for the whole process.
"""

import ctypes
import platform
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
LARGE_BYTES: Final = 2**20
LARGEST_BLOCK_BYTES: Final = 32 * 2**20
"""Blocks up to this size come from the heap; glibc takes no higher threshold."""
NEVER: Final = 2**31 - 1


def trim_freed() -> bool:
    """Map blocks of a MiB and more, and unmap them when they are freed; says whether it is so.

    For a process that decodes pictures: left alone glibc keeps freed blocks of up to 32 MiB, and
    Pillow's are of 16. After each of two threads had read a large picture, the API held 568 MiB.
    """
    return _set(M_MMAP_THRESHOLD, LARGE_BYTES)


def keep_freed() -> bool:
    """Let the process keep freed blocks for itself; says whether it is so.

    For an engine on a CPU: glibc unmaps large blocks as soon as they are freed, so every operator
    of a large batch gets fresh pages and faults them in one by one, some 4,000 faults and 5 % of a
    forward of 16 rows.
    """
    return _set(M_MMAP_THRESHOLD, LARGEST_BLOCK_BYTES) and _set(M_TRIM_THRESHOLD, NEVER)


def _set(option: int, value: int) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(option, value))
