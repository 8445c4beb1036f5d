"""Carries progress from the engine's thread to Redis, and cancellation back.

The engine must never wait for Redis, so it only leaves a note here; one thread writes the notes.
When Redis is slow, the newest notes of a job stay. A job whose claim no longer holds (canceled,
or another worker's by now) is dropped from the engine.
"""

import base64
import io
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import structlog
from PIL.Image import Image
from redis import Redis, RedisError

from service.core import redis_keys
from service.core.transitions import Claim, Transitions
from workers.engine.api import Ticket

logger = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 0.2
"""How often a job that takes no steps is looked at for cancellation."""
NOTES_KEPT: Final = 32
"""Steps of one job that may wait for Redis; the newest stay."""


@dataclass(eq=False)
class Following:
    """What one job has to tell; the engine's `Listener`.

    The engine's thread notes without a lock: deques take and give one at a time.
    """

    claim: Claim
    _wake: threading.Event
    ticket: Ticket | None = None
    steps: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=NOTES_KEPT))
    previews: deque[tuple[int, Image]] = field(default_factory=lambda: deque(maxlen=1))
    telling: threading.Lock = field(default_factory=threading.Lock)
    """Held by whoever takes steps to tell them, so that they stay in order."""

    def on_step(self, step: int, total: int) -> None:
        """Note a finished step; called on the engine's thread."""
        self.steps.append((step, total))
        self._wake.set()

    def on_preview(self, step: int, image: Image) -> None:
        """Note a preview; called on the engine's thread."""
        self.previews.append((step, image))
        self._wake.set()

    def drop(self) -> None:
        """Take the job from the engine."""
        ticket = self.ticket  # it may be gone the next moment
        if ticket is not None:
            ticket.cancel()


class Reporter(threading.Thread):
    """The thread that writes progress and learns of cancellation."""

    def __init__(self, redis: Redis, transitions: Transitions) -> None:
        super().__init__(name="reporter", daemon=True)
        self._redis = redis
        self._transitions = transitions
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._followed: set[Following] = set()

    def follow(self, claim: Claim) -> Following:
        """Begin to report on a job; give it its ticket as soon as there is one."""
        following = Following(claim, self._wake)
        with self._lock:
            self._followed.add(following)
        return following

    def leave(self, following: Following) -> None:
        """Stop reporting on a job; what it has still to tell is told first."""
        with self._lock:
            self._followed.discard(following)
        # A ticket may know its listener; in a circle both would wait for the collector of cycles.
        following.ticket = None
        try:
            self._tell_steps(following)
        except RedisError as error:
            logger.warning("progress not written", cause=type(error).__name__)

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._wake.set()

    def run(self) -> None:
        """Write what there is, look at the claims, sleep until there is more."""
        while not self._closing.is_set():
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
            with self._lock:
                followed = list(self._followed)
            try:
                for following in followed:
                    self._report(following)
                self._drop_lost(followed)
            except RedisError as error:
                logger.warning("progress not written", cause=type(error).__name__)
                self._closing.wait(1)
            except Exception:
                logger.exception("progress not written")
                self._closing.wait(1)

    def _report(self, following: Following) -> None:
        held = self._tell_steps(following)
        if following.previews and held:
            preview = _preview(*following.previews.popleft())
            held = self._transitions.preview(following.claim, preview)
        if not held:
            following.drop()

    def _tell_steps(self, following: Following) -> bool:
        """Whether the claim still holds, as far as these steps tell."""
        held = True
        with following.telling:
            for _ in range(len(following.steps)):  # not until it is empty: others wait as well
                note = following.steps.popleft()
                held = held and self._transitions.progress(following.claim, *note)
        return held

    def _drop_lost(self, followed: list[Following]) -> None:
        if not followed:
            return
        with self._redis.pipeline(transaction=False) as pipeline:
            for following in followed:
                pipeline.hget(redis_keys.job(following.claim.job_id), "fence")
            fences = pipeline.execute()
        for following, fence in zip(followed, fences, strict=True):
            if fence != following.claim.token.encode():
                following.drop()


def _preview(step: int, image: Image) -> dict[str, object]:
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=80)
    data = base64.b64encode(out.getvalue()).decode()
    return {"step": step, "content_type": "image/jpeg", "data": data}
