"""What the engine takes in and gives out: the seam between it and the worker around it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from PIL.Image import Image

from service.core.params import GenerateRequest
from workers.engine.silent import Silent


class Canceled(Exception):
    """Raised by `Ticket.result` when the job was canceled or the engine was stopped."""


class EngineDied(Exception):
    """Raised by `Ticket.result` when the engine had died before the job came: it did not begin."""


@dataclass(frozen=True, slots=True)
class EngineJob:
    """One job and a way to its uploads.

    `read(key)` reads one upload, by its key in `request`, as RGB; it is called only for uploads
    that are needed, so not where a cached embedding serves. It may raise `JobFailed` and is called
    on one of the engine's input threads, never on the one that owns the GPU.
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
    """The most rows (positive and negative ones) that shared a UNet forward with this job."""
    image_embedding_cache: Literal["hit", "miss"]


class Listener(Protocol):
    """Hears of a job's progress. Called on the engine's thread, so it must return at once."""

    def on_step(self, step: int, total: int) -> None:
        """`step` of `total` denoising steps are done for every picture of the job."""

    def on_preview(self, step: int, image: Image) -> None:
        """A rough small picture of where the job's first row stands."""


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


class Observer(Protocol):
    """Hears of what the engine does, for metrics. Called on the engine's threads."""

    def on_forward(self, model: str, rows: int) -> None:
        """One UNet forward over `rows` rows is done."""

    def on_embedding_lookup(self, level: Literal["process", "store", "miss"]) -> None:
        """An image embedding was looked for and found at `level`, or not."""

    def on_encoder_run(self) -> None:
        """An image encoder was run for one image prompt."""

    def on_recompile(self) -> None:
        """The UNet was compiled after warm-up."""

    def on_out_of_memory(self) -> None:
        """The device ran out of memory; the engine goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How an engine works, whatever its models.

    `slots` is the most jobs held at once and bounds the batches, `job_timeout_seconds` ends a job
    that computes for longer, `threads` the CPU threads of
    torch (0: its own choice), `store` a shared second level of the embedding cache, whose first
    level keeps `cache_entries`. `on_stage` hears what start-up is about to do.
    """

    slots: int = 16
    threads: int = 0
    job_timeout_seconds: float = math.inf
    store: EmbeddingStore | None = None
    cache_entries: int = 512
    preview_every_steps: int = 0
    observer: Observer = field(default_factory=Silent)
    on_stage: Callable[[str], None] = lambda _stage: None
