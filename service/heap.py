"""Lets glibc give large blocks back at once, so that a decoded picture leaves nothing behind.

Left alone it keeps freed blocks of up to 32 MiB, and Pillow's are of 16: after each thread had read
a large picture, the process held as much memory twice.
"""

import ctypes
from typing import Final

MMAP_THRESHOLD: Final = -3
"""mallopt(3): blocks of this size and more are mapped, and unmapped when they are freed."""
LARGE_BYTES: Final = 2**20


def give_back() -> None:
    """Set it for this process; where the C library is another one, nothing is done."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE_BYTES)
