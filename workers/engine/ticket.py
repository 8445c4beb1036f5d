"""A submitted job as its owner sees it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from service.core.errors import JobFailed
from workers.engine.api import Canceled, EngineDied, EngineResult


class EngineTicket:
    """Implements `types.Ticket`. It ends once, in exactly one way; later ends are ignored."""

    def __init__(self) -> None:
        self._future: Future[EngineResult] = Future()
        self._lock = threading.Lock()
        self.on_end: Callable[[], None] = _nothing
        """Called once, on the thread that ended it."""

    @property
    def done(self) -> bool:
        """Whether it has ended; the engine drops the rows of such a job before the next step."""
        return self._future.done()

    def cancel(self) -> None:
        """End the job as canceled. Its rows are gone before the next step."""
        self._end(error=Canceled())

    def succeed(self, result: EngineResult) -> None:
        """End the job with its pictures."""
        self._end(result=result)

    def fail(self, error: JobFailed | Canceled | EngineDied) -> None:
        """End the job with an error."""
        self._end(error=error)

    def result(self, timeout: float | None = None) -> EngineResult:
        """Wait for the pictures; see `types.Ticket.result` for what it raises."""
        return self._future.result(timeout)

    def _end(self, *, result: EngineResult | None = None, error: Exception | None = None) -> None:
        with self._lock:
            if self._future.done():
                return
            if error is not None:
                self._future.set_exception(error)
            elif result is not None:
                self._future.set_result(result)
        on_end, self.on_end = self.on_end, _nothing  # it holds the job, which holds this
        on_end()


def _nothing() -> None:
    pass
