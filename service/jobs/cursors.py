"""Where a page of jobs ends, as an opaque text that a client hands back."""

import base64
import binascii
import json
import math

from service.core.errors import FieldError, InvalidField


def write_cursor(last: tuple[float, str]) -> str:
    """Of (creation time, id) of the last job of a page."""
    return base64.urlsafe_b64encode(json.dumps(last).encode()).decode().rstrip("=")


def read_cursor(text: str) -> tuple[float, str]:
    """(creation time, id) again. Raises `InvalidField` for what `write_cursor` did not write."""
    try:
        moment, job_id = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise _unknown() from None
    if not isinstance(moment, float) or not math.isfinite(moment) or not isinstance(job_id, str):
        raise _unknown()
    return moment, job_id


def _unknown() -> InvalidField:
    message = "is none that this service gave out"
    return InvalidField(f"cursor: {message}", errors=[FieldError("cursor", message)])
