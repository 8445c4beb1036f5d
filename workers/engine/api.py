"""The engine's public types: jobs, tickets, results, and what listens to it."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol

from PIL.Image import Image

from service.core.errors import JobFailed
from service.core.job import JobWarning
from service.core.params import GenerateRequest


class Canceled(Exception):
    """Raised by `Ticket.result` when the job was canceled or the engine was stopped."""


class EngineDied(Exception):
    """Raised by `Ticket.result` when the engine had died before the job was submitted."""


@dataclass(frozen=True, slots=True)
class EngineJob:
    """One job. Its uploads are read only when they are needed.

    `read(key)` returns the upload stored under `key` as an RGB picture. It may raise `JobFailed`
    and is called on the engine's input threads.
    """

    id: str
    request: GenerateRequest
    read: Callable[[str], Image]


@dataclass(frozen=True, slots=True)
class EngineResult:
    """The pictures of a job, in order of their seeds, and where its time went (seconds)."""

    images: tuple[Image, ...]
    encode_seconds: float
    denoise_seconds: float
    decode_seconds: float
    max_batch: int
    """The largest batch of a UNet forward in which this job took part, in batch entries."""
    image_embedding_cache: Literal["hit", "miss"]
    maps: tuple[Image, ...] = ()
    """Control maps that were made of the pictures that were sent (`control_preprocess`)."""
    warnings: tuple[JobWarning, ...] = ()


class Listener(Protocol):
    """Receives a job's progress on the engine's thread, so its methods must return at once."""

    def on_step(self, step: int, total: int) -> None:
        """`step` of `total` denoising steps are done for every picture of the job."""

    def on_preview(self, step: int, image: Image) -> None:
        """`image` is a small approximate picture of the job's first row after `step` steps."""


class Ticket(Protocol):
    """A submitted job."""

    def cancel(self) -> None:
        """Drop the job's rows before the next step. Safe from any thread, and more than once."""

    def result(self, timeout: float | None = None) -> EngineResult:
        """Wait for the pictures.

        Raises `JobFailed` (service.core.errors), `Canceled`, `EngineDied`, or `TimeoutError` after
        `timeout` seconds, which leaves the job running.
        """


class EmbeddingStore(Protocol):
    """A shared second level behind the engine's own embedding cache. May lose entries."""

    def get(self, fingerprint: str) -> bytes | None:
        """The safetensors bytes stored under a fingerprint; never raises."""

    def put(self, fingerprint: str, data: bytes) -> None:
        """Store safetensors bytes; never raises."""


class EngineTicket:
    """Implements `Ticket`. It ends once; later ends are ignored."""

    def __init__(self) -> None:
        self._future: Future[EngineResult] = Future()
        self._lock = threading.Lock()
        self.on_end: Callable[[], None] = _do_nothing
        """Called once, on the thread that ended it."""

    @property
    def done(self) -> bool:
        """Whether it has ended; the engine drops the rows of such a job before the next step."""
        return self._future.done()

    def cancel(self) -> None:
        """End the job as canceled. Its rows are dropped before the next step."""
        self._end(error=Canceled())

    def succeed(self, result: EngineResult) -> None:
        """End the job with its pictures."""
        self._end(result=result)

    def fail(self, error: JobFailed | Canceled | EngineDied) -> None:
        """End the job with an error."""
        self._end(error=error)

    def result(self, timeout: float | None = None) -> EngineResult:
        """Wait for the pictures; see `Ticket.result` for what it raises."""
        return self._future.result(timeout)

    def _end(self, *, result: EngineResult | None = None, error: Exception | None = None) -> None:
        with self._lock:
            if self._future.done():
                return
            if error is not None:
                self._future.set_exception(error)
            elif result is not None:
                self._future.set_result(result)
        # Drop the reference: it holds the job, which holds this ticket.
        on_end, self.on_end = self.on_end, _do_nothing
        on_end()


def _do_nothing() -> None:
    pass


class Observer(Protocol):
    """Receives the engine's events for metrics, on the engine's threads."""

    def on_forward(self, model: str, rows: int) -> None:
        """One UNet forward over `rows` batch entries is done."""

    def on_embedding_lookup(self, level: Literal["process", "store", "miss"]) -> None:
        """An image embedding was looked up and found at `level`, or not."""

    def on_encoder_run(self) -> None:
        """An image encoder was run for one image prompt."""

    def on_recompile(self) -> None:
        """The UNet was compiled after warm-up."""

    def on_out_of_memory(self) -> None:
        """The device ran out of memory; the engine goes on."""


class NullObserver:
    """Implements `Listener` and `Observer` and ignores everything; a subclass overrides some."""

    def on_step(self, step: int, total: int) -> None:
        """See `Listener`."""

    def on_preview(self, step: int, image: Image) -> None:
        """See `Listener`."""

    def on_forward(self, model: str, rows: int) -> None:
        """See `Observer`."""

    def on_embedding_lookup(self, level: Literal["process", "store", "miss"]) -> None:
        """See `Observer`."""

    def on_encoder_run(self) -> None:
        """See `Observer`."""

    def on_recompile(self) -> None:
        """See `Observer`."""

    def on_out_of_memory(self) -> None:
        """See `Observer`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of an engine that do not depend on its models.

    `slots` is the most jobs held at once and bounds the batches; `threads` is the number of CPU
    threads of torch (0: torch's default), on a CPU of the engine's own thread alone; a job that
    computes for longer than `job_timeout_seconds` fails; `store` is a shared second level of the
    embedding cache, whose first level keeps `cache_entries`. `on_stage` is called with a
    description of each stage of start-up.
    """

    slots: int = 16
    threads: int = 0
    job_timeout_seconds: float = math.inf
    store: EmbeddingStore | None = None
    cache_entries: int = 512
    preview_every_steps: int = 0
    observer: Observer = field(default_factory=NullObserver)
    on_stage: Callable[[str], None] = lambda _stage: None
