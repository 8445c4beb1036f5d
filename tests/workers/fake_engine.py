"""Our own seam (`workers/engine/api.py`) faked: an engine whose every move the test makes."""

import threading
from collections.abc import Callable

from PIL import Image

from service.core.params import GenerateRequest
from workers.engine.api import Canceled, EngineJob, EngineResult, Listener


class FakeTicket:
    """A ticket whose end the test decides."""

    def __init__(self, job: EngineJob, listener: Listener | None) -> None:
        self.job = job
        self.listener = listener
        self.canceled = threading.Event()
        self._done = threading.Event()
        self._end: EngineResult | Exception | None = None

    def cancel(self) -> None:
        self.canceled.set()
        self.finish(Canceled())

    def finish(self, end: EngineResult | Exception) -> None:
        if self._end is None:
            self._end = end
        self._done.set()

    def result(self, timeout: float | None = None) -> EngineResult:
        if not self._done.wait(timeout):
            raise TimeoutError
        if isinstance(self._end, Exception):
            raise self._end
        assert self._end is not None
        return self._end


class FakeEngine:
    """Keeps what is submitted until the test ends it, or ends it at once by `answer`."""

    def __init__(self) -> None:
        self.models = {"tiny"}
        self.lost_adapters: set[str] = set()
        self.tickets: list[FakeTicket] = []
        self.answer: Callable[[EngineJob], EngineResult | Exception] | None = None

    def serves(self, request: GenerateRequest) -> bool:
        return request.model in self.models and request.adapter not in self.lost_adapters

    def submit(self, job: EngineJob, listener: Listener | None) -> FakeTicket:
        ticket = FakeTicket(job, listener)
        self.tickets.append(ticket)
        if self.answer is not None:
            ticket.finish(self.answer(job))
        return ticket


def result(colour: str = "red", count: int = 1) -> EngineResult:
    """Some finished pictures."""
    images = tuple(Image.new("RGB", (64, 64), colour) for _ in range(count))
    return EngineResult(images, 0.1, 0.2, 0.3, 4, "miss")
