"""What is left to do after the device is done with a picture or an embedding.

Threads beside the engine's wait for pixels, end tickets, and hand embeddings to the shared store.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL.Image import Image

from service.core.errors import EngineFault, JobFailed
from workers.engine.api import EngineResult
from workers.engine.cache import Embedding, EmbeddingCache
from workers.engine.rows import Work, now

log = logging.getLogger(__name__)
Lost = Callable[[torch.AcceleratorError], None]
"""Hears of a device that was lost."""


class Finisher:
    """Ends jobs on threads of its own."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="engine-finish")
        self._lock = threading.Lock()

    def picture(self, work: Work, index: int, wait: Callable[[], Image], lost: Lost) -> None:
        """Take in picture `index` of a job once its pixels are there; the last ends the job.

        A device that was lost on the way ends no job here: that is left to `lost`.
        """
        self._pool.submit(self._picture, work, index, wait, lost)

    def share(self, embeddings: Sequence[tuple[EmbeddingCache, str, Embedding]]) -> None:
        """Hand embeddings to the store behind their cache."""
        for cache, key, embedding in embeddings:
            self._pool.submit(cache.share, key, embedding)

    def stop(self) -> None:
        """Finish what was handed in and end the threads."""
        self._pool.shutdown()

    def _picture(self, work: Work, index: int, wait: Callable[[], Image], lost: Lost) -> None:
        try:
            image = wait()
        except torch.AcceleratorError as error:
            lost(error)
            return
        except JobFailed as error:
            work.ticket.fail(error)
            return
        except Exception:
            log.exception("a picture of job %s was lost after decoding", work.job.id)
            work.ticket.fail(EngineFault("A finished picture could not be taken in."))
            return
        with self._lock:
            work.pictures[index] = image
            complete = len(work.pictures) == work.job.request.num_images
        if complete:
            work.ticket.succeed(_result(work))


def _result(work: Work) -> EngineResult:
    assert work.inputs is not None, "a job without inputs has no pictures"
    return EngineResult(
        images=tuple(work.pictures[index] for index in range(len(work.pictures))),
        encode_seconds=work.ready_at - work.submitted_at,
        denoise_seconds=work.denoised_at - work.ready_at,
        decode_seconds=now() - work.denoised_at,
        max_batch=work.max_batch,
        image_embedding_cache="hit" if work.inputs.image_cache_hit else "miss",
    )
