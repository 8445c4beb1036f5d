"""The thread that owns the device: admits jobs, takes steps, starts decodes, one turn at a time.

Everything that runs on the device is started here. Between two steps at most one picture is
decoded and about as long is spent on encoders as a step takes, so that neither holds up the rows
that are running. It knows nothing of how jobs arrive or where results go.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Final, TypeVar

import torch

from service.core.errors import EngineFault, JobFailed, NotFinite, OutOfMemory, TookTooLong
from workers.engine.admission import Admission
from workers.engine.api import Observer
from workers.engine.batch import Batcher, Predictions
from workers.engine.batch_policy import Policy
from workers.engine.caps import Caps
from workers.engine.decode import Decoder
from workers.engine.determinism import by_rule
from workers.engine.finishing import Finisher
from workers.engine.previews import Previews
from workers.engine.rows import Row, Work, now
from workers.engine.taken import Taken, mark

log = logging.getLogger(__name__)
R = TypeVar("R")

IDLE_SECONDS: Final = 0.5
"""How long an idle engine sleeps before it says again that it is alive."""


class Stepper:
    """Runs on one thread, the only one that touches the device.

    `last_step_at` is the monotonic time of its last sign of progress. `on_death` is called where
    the thread ends by an error, as when the device is lost.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        batchers: Mapping[str, Batcher],
        caps: Caps,
        admission: Admission,
        decoder: Decoder,
        finisher: Finisher,
        previews: Previews,
        observer: Observer,
        threads: int,
        job_timeout_seconds: float,
        on_death: Callable[[], None],
    ) -> None:
        self._device = device
        self._batchers = batchers
        self._caps = caps
        self._admission = admission
        self._decoder = decoder
        self._finisher = finisher
        self._previews = previews
        self._observer = observer
        self._threads = threads
        self._job_timeout_seconds = job_timeout_seconds
        self._on_death = on_death
        self._policy = Policy(caps.of)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: deque[Work] = deque()
        self._rows: list[Row] = []
        self._decodes: deque[Row] = deque()
        self._taken: deque[Taken] = deque()
        # On CUDA one step is computed while the next is being started.
        self._ahead = 1 if device.type == "cuda" else 0
        self._step_seconds = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self.last_step_at = now()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step it is in."""
        if self._thread.is_alive():
            self.call(self._stop)
            self._thread.join()

    def admit(self, work: Work) -> None:
        """Hand in a job whose inputs have been gathered. Safe from any thread."""
        self.call(lambda: self._waiting.append(work))

    def wake(self) -> None:
        """Let an idle thread look for jobs that have ended. Safe from any thread."""
        self._inbox.put(None)

    def call(self, action: Callable[[], None]) -> None:
        """Run `action` on the thread between two steps. Safe from any thread."""
        self._inbox.put(action)

    def lose(self, error: torch.AcceleratorError) -> None:
        """End the thread by what another one has met of a lost device. Safe from any thread."""

        def end() -> None:
            raise error

        self.call(end)

    def ask(self, action: Callable[[], R]) -> R:
        """Run `action` on the thread between two steps and return what it returns."""
        answer: Future[R] = Future()

        def run() -> None:
            try:
                answer.set_result(action())
            except Exception as error:  # noqa: BLE001 (raised again where it was asked for)
                answer.set_exception(error)

        self.call(run)
        return answer.result()

    def _stop(self) -> None:
        self._stopping = True

    def _main(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                while not self._stopping:
                    self._turn()
        except BaseException:
            log.exception("the engine's thread has died")
            self._on_death()

    def _turn(self) -> None:
        self._receive()
        self._end_late()
        self._drop_ended()
        self._encode()
        self._decode()
        running = [row for row in self._rows if not row.done]
        if running:
            self._step(self._policy.choose(running))
        while len(self._taken) > (self._ahead if running else 0):
            self._settle(self._taken.popleft())
        self.last_step_at = now()

    # 1. What has arrived, and what has ended.

    def _receive(self) -> None:
        idle = not (self._rows or self._waiting or self._decodes or self._taken)
        try:
            action = self._inbox.get(timeout=IDLE_SECONDS) if idle else self._inbox.get_nowait()
            while True:
                if action is not None:
                    action()
                action = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _end_late(self) -> None:
        limit = self._job_timeout_seconds
        latest = now() - limit
        for row in (*self._rows, *self._decodes):
            if row.work.ready_at < latest:
                row.work.ticket.fail(
                    TookTooLong(f"The job computed for longer than the {limit:g} s it may.")
                )

    def _drop_ended(self) -> None:
        self._rows = [row for row in self._rows if not row.work.ticket.done]
        self._decodes = deque(row for row in self._decodes if not row.work.ticket.done)
        self._waiting = deque(work for work in self._waiting if not work.ticket.done)

    # 2. Admission.

    def _encode(self) -> None:
        started = now()
        while self._waiting:
            work = self._waiting.popleft()
            try:
                self._admit(work)
            except torch.AcceleratorError:
                raise  # the device is lost, and with it everything on it
            except JobFailed as error:
                work.ticket.fail(error)
            except Exception as error:  # noqa: BLE001 (one job's fault must not end the others)
                self._fail(work, error)
            if self._rows and now() - started > self._step_seconds:
                return

    def _admit(self, work: Work) -> None:
        rows = self._admission.rows_of(work)
        work.ready_at = now()
        self._rows += rows

    # 3. Decoding.

    def _decode(self) -> None:
        if not self._decodes:
            return
        row = self._decodes.popleft()
        work = row.work
        try:
            with by_rule() if work.job.request.deterministic else nullcontext():
                wait = self._decoder.decode(work.model, row.latents)
        except torch.AcceleratorError:
            raise  # as above
        except JobFailed as error:
            work.ticket.fail(error)
        except Exception as error:  # noqa: BLE001 (one job's fault must not end the others)
            self._fail(work, error)
        else:
            self._finisher.picture(work, row.index, wait, self.lose)

    # 4. Steps.

    def _step(self, rows: Sequence[Row]) -> None:
        started = now()
        work = rows[0].work
        places = sum(row.places for row in rows)
        try:
            predictions = self._batchers[work.model.name].predict(rows)
        except torch.AcceleratorError:
            raise  # as above
        except Exception as error:  # noqa: BLE001 (the engine lives on)
            for row in rows:
                self._fail(row.work, error)
            return
        for index, row in enumerate(predictions.rows):
            row.work.max_batch = max(row.work.max_batch, places)
            self._advance(row, predictions, slice(index, index + 1))
        if predictions.out_of_memory:
            self._caps.lower(work.group, places)
        for row, failure in predictions.failed:
            row.work.ticket.fail(failure)
        self._taken.append(mark(predictions, self._device))
        self._step_seconds = now() - started
        self._observer.on_forward(work.model.name, places)

    def _advance(self, row: Row, predictions: Predictions, own: slice) -> None:
        """Let one row take its step; if it fails, its job fails alone."""
        try:
            self._previews.before(row, predictions.inputs[own], predictions.values[own])
            row.advance(predictions.values[own])
        except torch.AcceleratorError:
            raise  # as above
        except Exception as error:  # noqa: BLE001 (one job's fault must not end the others)
            self._fail(row.work, error)

    def _settle(self, taken: Taken) -> None:
        """Look at a step that has been computed: drop sick rows, tell of progress, decode."""
        if taken.done is not None:
            taken.done.synchronize()
        for row, finite in zip(taken.rows, taken.finite.tolist(), strict=True):
            if not finite:
                row.work.ticket.fail(
                    NotFinite(f"The latents of picture {row.index} became NaN or infinity.")
                )
        for work, step in taken.steps.items():
            if not work.ticket.done:
                self._tell(work, step)
        for row in taken.finished:
            if row in self._rows and not row.work.ticket.done:
                self._rows.remove(row)
                row.work.denoised_at = now()
                self._decodes.append(row)

    def _tell(self, work: Work, step: int) -> None:
        try:
            if step > work.reported:
                work.reported = step
                work.listener.on_step(step, work.job.request.steps)
            self._previews.send(work)
        except Exception:
            log.exception("the listener of job %s failed", work.job.id)

    # 5. When something goes wrong.

    def _fail(self, work: Work, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            self._observer.on_out_of_memory()
            work.ticket.fail(OutOfMemory("The job's inputs do not fit into the GPU's memory."))
            return
        log.error("job %s failed in the engine", work.job.id, exc_info=error)
        work.ticket.fail(EngineFault("The engine failed at this job; its log has the cause."))
