"""The thread that owns the device: admits jobs, takes steps, starts decodes, one turn at a time.

Everything that runs on the device is started here. Between two steps at most one picture is
decoded and about as long is spent on encoders as a step takes, so that neither delays the running
rows for long.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import torch
from torch import Tensor

from service.core.errors import EngineFault, JobFailed, NotFinite, OutOfMemory, TookTooLong
from workers.engine.api import Observer
from workers.engine.batch import Batcher, Predictions
from workers.engine.batch_policy import BatchCaps, BatchPolicy
from workers.engine.decode import Decoder, Finisher
from workers.engine.determinism import deterministic
from workers.engine.device import CPU_THREADS, set_threads
from workers.engine.inputs import JobPreparer
from workers.engine.preview import Previews
from workers.engine.rows import Row, Work, now

log = logging.getLogger(__name__)
R = TypeVar("R")

IDLE_SECONDS: Final = 0.5
"""How long an idle engine sleeps before it reports again that it is alive."""


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step that was started and whose result was not looked at yet.

    `finite` is a flag a row on the CPU, valid once `done` (CUDA only) has happened; `steps` are
    the steps that each job had done then, `finished` the rows for which it was the last.
    """

    rows: tuple[Row, ...]
    finite: Tensor
    done: torch.cuda.Event | None
    steps: Mapping[Work, int]
    finished: tuple[Row, ...]


class StepLoop:
    """Takes steps, on a thread of its own once it is started; only that thread uses the device.

    `last_step_at` is the monotonic time of its last progress. `on_death` is called where the thread
    ends by an error, as when the device is lost. Without `start`, one thread may call `turn` by
    hand. `ahead` is how many steps may be started before the results of the last are looked at.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        batchers: Mapping[str, Batcher],
        caps: BatchCaps,
        preparer: JobPreparer,
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
        self._preparer = preparer
        self._decoder = decoder
        self._finisher = finisher
        self.previews = previews
        self._observer = observer
        self._threads = threads
        self.job_timeout_seconds = job_timeout_seconds
        self._on_death = on_death
        self._policy = BatchPolicy(caps.of)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: deque[Work] = deque()
        self._rows: list[Row] = []
        self._decodes: deque[Row] = deque()
        self._pending: deque[PendingStep] = deque()
        # On CUDA one step is computed while the next is being started.
        self.ahead = 1 if device.type == "cuda" else 0
        self._step_seconds = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._has_threads = threading.Event()
        self.last_step_at = now()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> tuple[Work, ...]:
        """Jobs whose inputs were gathered and that have no rows yet."""
        return tuple(self._waiting)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Rows that take steps."""
        return tuple(self._rows)

    @property
    def decoding(self) -> tuple[Row, ...]:
        """Rows whose steps are all done and that wait to be decoded."""
        return tuple(self._decodes)

    def start(self) -> None:
        """Start the thread. On a CPU, operators on any other thread use one core from then on."""
        self._thread.start()
        self._has_threads.wait()
        if self._device.type == "cpu":
            set_threads(1)

    def stop(self) -> None:
        """End the thread after the step it is in."""
        if self._thread.is_alive():
            self.call(self._stop)
            self._thread.join()

    def add(self, work: Work) -> None:
        """Add a job whose inputs were gathered. Safe from any thread."""
        self.call(lambda: self._waiting.append(work))

    def wake(self) -> None:
        """Wake an idle thread, so that it drops jobs that have ended. Safe from any thread."""
        self._inbox.put(None)

    def call(self, action: Callable[[], None]) -> None:
        """Run `action` on the thread between two steps. Safe from any thread."""
        self._inbox.put(action)

    def fail(self, error: torch.AcceleratorError) -> None:
        """End the thread with a lost device's error from another thread. Safe from any thread."""

        def end() -> None:
            raise error

        self.call(end)

    def ask(self, action: Callable[[], R]) -> R:
        """Run `action` on the thread between two steps and return what it returns."""
        answer: Future[R] = Future()

        def run() -> None:
            try:
                answer.set_result(action())
            except Exception as error:  # noqa: BLE001 (raised again in the caller)
                answer.set_exception(error)

        self.call(run)
        return answer.result()

    def _stop(self) -> None:
        self._stopping = True

    def _main(self) -> None:
        set_threads(self._threads or CPU_THREADS)
        self._has_threads.set()
        try:
            while not self._stopping:
                self.turn()
        except BaseException:
            log.exception("the engine's thread has died")
            self._on_death()

    @torch.inference_mode()
    def turn(self) -> None:
        """Do one round of everything: at most one step for one batch of rows.

        An idle loop waits for a call first, `IDLE_SECONDS` at most. Raises
        `torch.AcceleratorError` where the device is lost.
        """
        self.receive()
        self._end_late()
        self._drop_ended()
        self.prepare()
        self._decode()
        running = [row for row in self._rows if not row.done]
        if running:
            self._step(self._policy.choose(running))
        while len(self._pending) > (self.ahead if running else 0):
            self._settle(self._pending.popleft())
        self.last_step_at = now()

    # 1. What has arrived, and what has ended.

    def receive(self) -> None:
        """Run the calls that other threads have made; part of `turn`."""
        idle = not (self._rows or self._waiting or self._decodes or self._pending)
        try:
            action = self._inbox.get(timeout=IDLE_SECONDS) if idle else self._inbox.get_nowait()
            while True:
                if action is not None:
                    action()
                action = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _end_late(self) -> None:
        limit = self.job_timeout_seconds
        latest = now() - limit
        for row in (*self._rows, *self._decodes):
            if row.work.ready_at < latest:
                row.work.ticket.fail(
                    TookTooLong(f"The job computed for longer than the limit of {limit:g} s.")
                )

    def _drop_ended(self) -> None:
        self._rows = [row for row in self._rows if not row.work.ticket.done]
        self._decodes = deque(row for row in self._decodes if not row.work.ticket.done)
        self._waiting = deque(work for work in self._waiting if not work.ticket.done)

    # 2. New rows.

    @torch.inference_mode()
    def prepare(self, seconds: float | None = None) -> None:
        """Make rows of waiting jobs, for about `seconds` (None: one step); part of `turn`."""
        started = now()
        limit = self._step_seconds if seconds is None else seconds
        while self._waiting:
            work = self._waiting.popleft()
            try:
                self._prepare(work)
            except torch.AcceleratorError:
                raise  # the device is lost, and with it everything on it
            except JobFailed as error:
                work.ticket.fail(error)
            except Exception as error:  # noqa: BLE001 (one job's fault must not end the others)
                self._fail(work, error)
            if self._rows and now() - started > limit:
                return

    def _prepare(self, work: Work) -> None:
        rows = self._preparer.rows_of(work)
        work.ready_at = now()
        self._rows += rows

    # 3. Decoding.

    def _decode(self) -> None:
        if not self._decodes:
            return
        row = self._decodes.popleft()
        work = row.work
        try:
            with deterministic() if work.job.request.deterministic else nullcontext():
                wait = self._decoder.decode(work.model, row.latents)
        except torch.AcceleratorError:
            raise  # the device is lost
        except JobFailed as error:
            work.ticket.fail(error)
        except Exception as error:  # noqa: BLE001 (one job's fault must not end the others)
            self._fail(work, error)
        else:
            finish = partial(self._preparer.finish, row.conditions)
            self._finisher.picture(work, row.index, lambda: finish(wait()), self.fail)

    # 4. Steps.

    def _step(self, rows: Sequence[Row]) -> None:
        started = now()
        work = rows[0].work
        entries = sum(row.entries for row in rows)
        try:
            predictions = self._batchers[work.model.name].predict(rows)
        except torch.AcceleratorError:
            raise  # the device is lost
        except Exception as error:  # noqa: BLE001 (the engine lives on)
            for row in rows:
                self._fail(row.work, error)
            return
        for index, row in enumerate(predictions.rows):
            row.work.max_batch = max(row.work.max_batch, entries)
            self._advance(row, predictions, slice(index, index + 1))
        if predictions.out_of_memory:
            self._caps.lower(work.group, entries)
        for row, failure in predictions.failed:
            row.work.ticket.fail(failure)
        self._pending.append(_pending(predictions, self._device))
        self._step_seconds = now() - started
        self._observer.on_forward(work.model.name, entries)

    def _advance(self, row: Row, predictions: Predictions, own: slice) -> None:
        """Let one row take its step; if it fails, its job fails alone."""
        try:
            self.previews.before(row, predictions.inputs[own], predictions.values[own])
            row.advance(predictions.values[own])
            self._preparer.after_step(row)
        except torch.AcceleratorError:
            raise  # the device is lost
        except Exception as error:  # noqa: BLE001 (one job's fault must not end the others)
            self._fail(row.work, error)

    def _settle(self, step: PendingStep) -> None:
        """Read the result of a step: fail rows that are not finite, report progress, decode."""
        if step.done is not None:
            step.done.synchronize()
        for row, finite in zip(step.rows, step.finite.tolist(), strict=True):
            if not finite:
                row.work.ticket.fail(
                    NotFinite(f"The latents of picture {row.index} became NaN or infinity.")
                )
        for work, number in step.steps.items():
            if not work.ticket.done:
                self._report(work, number)
        for row in step.finished:
            if row in self._rows and not row.work.ticket.done:
                self._rows.remove(row)
                row.work.denoised_at = now()
                self._decodes.append(row)

    def _report(self, work: Work, step: int) -> None:
        try:
            if step > work.reported:
                work.reported = step
                work.listener.on_step(step, work.job.request.steps)
            self.previews.send(work)
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


def _pending(predictions: Predictions, device: torch.device) -> PendingStep:
    """Note the progress of the rows of `predictions` after their step."""
    steps = {row.work: row.work.reached for row in predictions.rows}
    finished = tuple(row for row in predictions.rows if row.done)
    if device.type != "cuda":
        return PendingStep(predictions.rows, predictions.finite, None, steps, finished)
    finite = predictions.finite.to("cpu", non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return PendingStep(predictions.rows, finite, done, steps, finished)
