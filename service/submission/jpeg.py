"""Counts the scans of a JPEG without decoding it. It knows nothing of uploads.

A progressive JPEG may refine the same picture in any number of scans of a few bytes each, and a
decoder goes through all of its blocks for every one.
"""

import re
from typing import Final

_MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
"""Of all but those without a length: stuffed bytes, TEM, restart markers and SOI."""
_END: Final = 0xD9
_SCAN: Final = 0xDA


def count_scans(data: bytes) -> int:
    """How many scans come before the end of the image (ITU-T T.81, section B.2)."""
    scans, at = 0, 2
    while marker := _MARKER.search(data, at):
        at = marker.end()
        code = data[at - 1]
        if code == _END:
            break
        scans += code == _SCAN
        at += int.from_bytes(data[at : at + 2])
    return scans
