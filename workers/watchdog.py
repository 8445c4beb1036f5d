"""Ends a worker whose engine hangs, so that whoever started it starts a fresh one.

It asks for finished denoising steps, not for a thread that ticks. The jobs of an ended worker
come back when their leases run out.
"""

import os
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

logger = structlog.get_logger(__name__)

EXIT_STATUS: Final = 70  # EX_SOFTWARE of sysexits.h


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

    def healthy(self) -> bool:
        """Whether the engine lives and has finished a step lately, or has nothing to do."""
        silent_seconds = self._clock() - self._engine.last_step_at
        return self._engine.alive and silent_seconds <= self._step_timeout_seconds

    def __call__(self) -> None:
        """End the process if the engine is not healthy."""
        if not self.healthy():
            silent_seconds = round(self._clock() - self._engine.last_step_at, 1)
            logger.critical(
                "engine hangs; worker ends to be replaced",
                engine_alive=self._engine.alive,
                seconds_without_step=silent_seconds,
            )
            self._leave(EXIT_STATUS)
