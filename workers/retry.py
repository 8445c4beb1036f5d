"""Trying again while something outside is away. Knows nothing of what it is."""

import random
import time
from collections.abc import Callable
from threading import Event
from typing import TypeVar

R = TypeVar("R")
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0


class Interrupted(Exception):
    """Raised when a wait was ended because its work is no longer wanted here."""


def persist(
    action: Callable[[], R],
    errors: type[Exception] | tuple[type[Exception], ...],
    *,
    interrupt: Event,
    patience_seconds: float = float("inf"),
    on_error: Callable[[Exception], None],
) -> R:
    """Call `action` until it succeeds, with growing jittered pauses.

    Raises the last of `errors` after `patience_seconds`, `Interrupted` once `interrupt` is set.
    """
    began, pause = time.monotonic(), FIRST_PAUSE_SECONDS
    while True:
        try:
            return action()
        except errors as error:
            if time.monotonic() - began > patience_seconds:
                raise
            on_error(error)
        if interrupt.wait(pause * random.uniform(0.5, 1)):  # noqa: S311  jitter, no secret
            raise Interrupted
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
