"""Ends a worker whose engine hangs, so that whoever started it starts a fresh one.

It asks for finished denoising steps, not for a thread that ticks. A process that was itself paused
(SIGSTOP, a moved machine) is not hung: it gets its time anew. The jobs of an ended worker come
back when their leases run out.
"""

import os
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

logger = structlog.get_logger(__name__)

EXIT_STATUS: Final = 70  # EX_SOFTWARE of sysexits.h
LOOK_SECONDS: Final = 1.0
"""How often the watchdog is to be called."""
PAUSE_SECONDS: Final = 5.0
"""A watchdog that was not called for so long was paused together with the engine."""


class Watched(Protocol):
    """What the watchdog looks at; `workers.engine.engine.Engine` is one."""

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""

    @property
    def last_step_at(self) -> float:
        """`time.monotonic()` of the last finished step, kept fresh while there is nothing to do."""


class Watchdog:
    """Judges an engine by its steps."""

    def __init__(
        self,
        engine: Watched,
        *,
        step_timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        """`leave` ends the process at once: a hung thread would hold up an orderly exit."""
        self._engine = engine
        self._step_timeout_seconds = step_timeout_seconds
        self._clock = clock
        self._leave = leave
        self._called_at = self._resumed_at = clock()

    def healthy(self) -> bool:
        """Whether the engine lives and has finished a step lately, or has nothing to do."""
        return self._engine.alive and self._silent_seconds() <= self._step_timeout_seconds

    def __call__(self) -> None:
        """End the process if the engine is not healthy."""
        now = self._clock()
        if now - self._called_at > PAUSE_SECONDS:
            logger.warning("worker was paused", seconds=round(now - self._called_at, 1))
            self._resumed_at = now
        self._called_at = now
        if not self.healthy():
            logger.critical(
                "engine hangs; worker ends to be replaced",
                engine_alive=self._engine.alive,
                seconds_without_step=round(self._silent_seconds(), 1),
            )
            self._leave(EXIT_STATUS)

    def _silent_seconds(self) -> float:
        return self._clock() - max(self._engine.last_step_at, self._resumed_at)
