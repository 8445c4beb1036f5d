"""Latents to pictures, and the end of a job: the VAE, results and tickets.

The VAE runs in tiles where the whole does not fit into memory, and on CUDA on a stream of its own
beside the next step. Threads beside the engine's wait for pixels, end tickets, and put embeddings
into the shared store.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from service.core.errors import EngineFault, JobFailed, NotFinite, OutOfMemory
from workers.engine.api import EngineResult
from workers.engine.cache import Embedding, EmbeddingCache
from workers.engine.conditioning import control, image_prompt
from workers.engine.models.base import Model
from workers.engine.rows import Work, now

log = logging.getLogger(__name__)

Lost = Callable[[torch.AcceleratorError], None]
"""Called with the error of a device that was lost."""
SMALLEST_TILE: Final = 16
"""Side of the smallest tile, in latents."""


class Decoder:
    """Decodes finished rows of any model. Only the engine's thread calls it."""

    def __init__(self, device: torch.device, on_out_of_memory: Callable[[], None]) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._on_out_of_memory = on_out_of_memory

    def decode(self, model: Model, latents: Tensor) -> Callable[[], Image.Image]:
        """Start decoding `(1, channels, h, w)`; call the result elsewhere to wait for it.

        Raises `OutOfMemory` where not even tiles fit; the result raises `NotFinite` where the
        VAE gives no picture.
        """
        if self._stream is None:
            pixels, finite = self._pixels(model, latents)
            return lambda: _picture(pixels, finite)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            latents.record_stream(self._stream)
            pixels, finite = (
                part.to("cpu", non_blocking=True) for part in self._pixels(model, latents)
            )
            done = torch.cuda.Event()
            done.record()

        def wait() -> Image.Image:
            done.synchronize()
            return _picture(pixels, finite)

        return wait

    def _pixels(self, model: Model, latents: Tensor) -> tuple[Tensor, Tensor]:
        """One picture as `(height, width, 3)` bytes, and whether all of it was finite."""
        decoded = self._whole(model, latents)
        if decoded is None:
            decoded = self._tiled(model, latents)
        picture = (decoded[0] * 0.5 + 0.5).clamp(0, 1).float() * 255
        return picture.round().to(torch.uint8).permute(1, 2, 0), torch.isfinite(decoded).all()

    def _whole(self, model: Model, latents: Tensor) -> Tensor | None:
        """The decode, or None where it does not fit into memory."""
        try:
            decoded = model.decode(latents)
        except torch.OutOfMemoryError:
            log.warning("a picture does not fit into memory and is decoded in tiles")
        else:
            return decoded
        self._on_out_of_memory()
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _tiled(self, model: Model, latents: Tensor) -> Tensor:
        side = max(SMALLEST_TILE, max(latents.shape[-2:]) // 4)
        try:
            decoded = model.decode_tiled(latents, side)
        except torch.OutOfMemoryError:
            self._on_out_of_memory()
            raise OutOfMemory(
                "The picture does not fit into the GPU's memory even when decoded in tiles."
            ) from None
        return decoded


class Finisher:
    """Ends jobs on threads of its own."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="engine-finish")
        self._lock = threading.Lock()

    def picture(self, work: Work, index: int, wait: Callable[[], Image.Image], lost: Lost) -> None:
        """Add picture `index` to a job once its pixels are there; the last one ends the job.

        A lost device ends no job here: `lost` is called.
        """
        self._pool.submit(self._picture, work, index, wait, lost)

    def share(self, embeddings: Sequence[tuple[EmbeddingCache, str, Embedding]]) -> None:
        """Put embeddings into the store behind their cache."""
        for cache, key, embedding in embeddings:
            self._pool.submit(cache.share, key, embedding)

    def stop(self) -> None:
        """Finish what was submitted and end the threads."""
        self._pool.shutdown()

    def _picture(self, work: Work, index: int, wait: Callable[[], Image.Image], lost: Lost) -> None:
        try:
            image = wait()
        except torch.AcceleratorError as error:
            lost(error)
            return
        except JobFailed as error:
            work.ticket.fail(error)
            return
        except Exception:
            log.exception("picture of job %s failed after decoding", work.job.id)
            work.ticket.fail(EngineFault("A finished picture could not be read from the device."))
            return
        with self._lock:
            work.pictures[index] = image
            complete = len(work.pictures) == work.job.request.num_images
        if complete:
            work.ticket.succeed(_result(work))


def _picture(pixels: Tensor, finite: Tensor) -> Image.Image:
    if not bool(finite):
        raise NotFinite("The VAE gave NaN or infinity instead of a picture.")
    return Image.fromarray(pixels.contiguous().numpy())


def _result(work: Work) -> EngineResult:
    assert work.gathered is not None, "a job without inputs has no pictures"
    return EngineResult(
        images=tuple(work.pictures[index] for index in range(len(work.pictures))),
        encode_seconds=work.ready_at - work.submitted_at,
        denoise_seconds=work.denoised_at - work.ready_at,
        decode_seconds=now() - work.denoised_at,
        max_batch=work.max_batch,
        image_embedding_cache="hit" if image_prompt.cache_hit(work.gathered) else "miss",
        maps=control.made_maps(work.gathered),
        warnings=work.warnings,
    )
