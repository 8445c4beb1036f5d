"""A real worker with one fault of the test's own, at the engine's seam.

A job whose prompt is `poison` kills the process at its first step; one whose prompt is `hang`
holds the engine's thread for ever.
"""

import os
import signal
import threading

from workers import __main__ as worker
from workers.engine.api import EngineJob, Listener, Ticket
from workers.engine.engine import Engine


class Trouble:
    """Listens on the engine's thread, and strikes there."""

    def __init__(self, kind: str, listener: Listener) -> None:
        self._kind = kind
        self._listener = listener
        self.on_preview = listener.on_preview

    def on_step(self, step: int, total: int) -> None:
        """Do what the job's prompt says."""
        if self._kind == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._kind == "hang":
            threading.Event().wait()
        self._listener.on_step(step, total)


def main() -> None:
    """Run a worker whose engine listens to `Trouble`."""
    submit = Engine.submit

    def troubled(self: Engine, job: EngineJob, listener: Listener | None = None) -> Ticket:
        heard = None if listener is None else Trouble(job.request.prompt, listener)
        return submit(self, job, heard)

    Engine.submit = troubled
    worker.main()


if __name__ == "__main__":
    main()
