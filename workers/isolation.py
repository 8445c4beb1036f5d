"""Who may share a batch: a job that has seen its worker die twice runs alone.

One job that kills its worker would otherwise take the others of its batch along, attempt by
attempt, until all of them were given up. Alone, it takes only itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Isolation:
    """Many ordinary jobs at once, or one suspect; suspects go first."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._together = 0
        self._alone = False
        self._suspects = 0

    @contextmanager
    def enter(self, *, suspect: bool) -> Iterator[None]:
        """Wait for the turn, hold it for the block."""
        with self._changed:
            if suspect:
                self._suspects += 1
                self._changed.wait_for(lambda: not self._alone and self._together == 0)
                self._alone = True
            else:
                self._changed.wait_for(lambda: not self._alone and self._suspects == 0)
                self._together += 1
        try:
            yield
        finally:
            with self._changed:
                if suspect:
                    self._suspects -= 1
                    self._alone = False
                else:
                    self._together -= 1
                self._changed.notify_all()
