"""From a submitted job to rows that can take steps.

Inputs are gathered on threads beside the engine's: cached embeddings are looked up and uploads are
read where none is found. On the engine's thread, between two steps, the conditions that the steps
of a job share are computed.
"""

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from threading import Lock
from typing import Any, Final

import torch
from PIL.Image import Image

from service.core.params import GenerateRequest
from service.core.schema import Files, marked
from workers.engine import schedulers
from workers.engine.api import EngineJob
from workers.engine.cache import Embedding, EmbeddingCache
from workers.engine.conditioning.base import Conditioning, Conditions, Gathered, Preparation
from workers.engine.determinism import deterministic
from workers.engine.device import to_device
from workers.engine.models.base import Model
from workers.engine.rows import Row, Work, draw_noise

Fresh = Sequence[tuple[EmbeddingCache, str, Embedding]]
"""Embeddings that were just computed, with their cache and key."""


LARGE_PIXELS: Final = 2**22
"""A picture of more takes over 16 MB decoded; Pillow has 4 bytes a pixel."""


def _has_large_picture(request: GenerateRequest) -> bool:
    uploads = (one for name in marked(GenerateRequest, Files) for one in getattr(request, name))
    return any(upload.width * upload.height > LARGE_PIXELS for upload in uploads)


class JobPreparer:
    """Runs the conditionings' hooks on jobs. `share` takes fresh embeddings for the store."""

    def __init__(self, ways: Sequence[Conditioning], share: Callable[[Fresh], None]) -> None:
        self._ways = ways
        self._share = share
        self._numbers = itertools.count()
        self._large_picture = Lock()

    def check(self, request: GenerateRequest, model: Model) -> None:
        """Raise `UnservableRequest` where the model cannot do what is asked."""
        for way in self._ways:
            way.check(request, model)

    def gather(self, job: EngineJob, model: Model) -> Gathered:
        """All inputs of a job. Raises what `check` and `job.read` raise.

        Of jobs with a large picture one at a time, so that one is decoded in memory and not one for
        each input thread.
        """
        self.check(job.request, model)
        with self._large_picture if _has_large_picture(job.request) else nullcontext():
            return {way.name: way.gather(job, model) for way in self._ways}

    def rows_of(self, work: Work) -> list[Row]:
        """The rows of a job whose inputs were gathered, one a picture; on the engine's thread.

        Deterministic for every job: what is cached here may be used by a deterministic one. Raises
        `UnservableRequest` where its sampler cannot do so many steps.
        """
        with deterministic():
            return self._rows_of(work)

    def _rows_of(self, work: Work) -> list[Row]:
        request, model = work.job.request, work.model
        start = request.first_step
        samplers = [
            schedulers.make(
                request.scheduler,
                model.scheduler_config,
                request.steps,
                sigmas=request.sigmas,
                start=start,
            )
            for _ in range(request.num_images)
        ]
        timesteps = schedulers.visited(samplers[0])
        work.steps, work.passes = [0] * request.num_images, len(timesteps)
        job = Preparation(request, model, to_device(timesteps, model.device))
        conditions = self._conditions(work, job)
        return [
            self._start(work, index, conditions, sampler) for index, sampler in enumerate(samplers)
        ]

    def after_step(self, row: Row) -> None:
        """Let every way change a row after it took a step."""
        for way in self._ways:
            way.after_step(row)

    def finish(self, conditions: Conditions, picture: Image) -> Image:
        """Let every way change a finished picture; not on the engine's thread."""
        for way in self._ways:
            picture = way.finish(conditions, picture)
        return picture

    def _start(self, work: Work, index: int, conditions: Conditions, sampler: Any) -> Row:
        """Picture `index` of a job, from seed + index as the plain pipeline makes it."""
        generator = torch.Generator("cpu").manual_seed(work.job.request.seed + index)
        timesteps = schedulers.visited(sampler)
        row = Row(work, index, conditions, sampler, generator, timesteps)
        for way in self._ways:
            way.start(row)
        if not row.latents.numel():
            draw_noise(row)
        return row

    def _conditions(self, work: Work, job: Preparation) -> Conditions:
        assert work.gathered is not None, "jobs are prepared after their inputs were gathered"
        states = {way.name: way.prepare(job, work.gathered[way.name]) for way in self._ways}
        self._share(job.fresh)
        work.warnings = tuple(job.warnings)
        request = job.request
        return Conditions(
            number=next(self._numbers),
            states=states,
            branches=job.branches,
            guided=job.guided,
            guidance_scale=request.guidance_scale,
        )
