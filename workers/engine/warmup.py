"""Warm-up: real jobs of each class, and the measurements that set the batch caps."""

import hashlib
import time
from collections.abc import Iterator
from typing import Final

import torch
from PIL import Image

from service.core.param_types import StoredUpload
from service.core.params import GenerateRequest
from workers.engine import preview
from workers.engine.api import EngineJob, EngineTicket, NullObserver
from workers.engine.batch import Batcher
from workers.engine.decode import Decoder
from workers.engine.inputs import JobPreparer
from workers.engine.models.base import Model
from workers.engine.rows import Row, Work, now

STEPS: Final = 2
REPEATS: Final = 3
ATTEMPTS: Final = 3
"""How often a number of entries is measured before it counts as one that does not pay."""
GAIN: Final = 1.02
"""The batch is doubled for as long as that raises the rate by this factor."""
PREVIEW_PICTURES: Final = 4


def classes(name: str, model: Model) -> Iterator[EngineJob]:
    """One job of each class of a model: adapters, ControlNets, sizes."""
    entry = model.entry
    default = (entry.defaults.width, entry.defaults.height)
    for adapter in entry.adapters:
        yield job(name, model, adapter=adapter, size=default)
    for control in entry.controlnets:
        yield job(name, model, control=control, size=default)
    for size in entry.warm_sizes:
        if size != default:
            yield job(name, model, size=size)


def job(
    name: str,
    model: Model,
    *,
    size: tuple[int, int],
    adapter: str | None = None,
    control: str | None = None,
    seed: int = 0,
) -> EngineJob:
    """A small guided job of one class with a picture of coloured noise; `size` is in pixels."""
    defaults = model.entry.defaults
    picture = noise(64, seed)
    pixels = digest(picture)
    prompt = StoredUpload(
        key="inputs/warm-up/0.png",
        sha256=pixels,
        pixels_sha256=pixels,
        width=picture.width,
        height=picture.height,
    )
    request = GenerateRequest(
        model=name,
        adapter=adapter or defaults.adapter,
        image=(prompt,),
        image_weights=(1.0,),
        control_image=(prompt.model_copy(update={"key": "inputs/warm-up/1.png"}),)
        if control
        else (),
        control_type=(control,) if control else (),
        ip_scale=1.0,
        width=size[0],
        height=size[1],
        steps=STEPS,
        guidance_scale=max(2.0, defaults.guidance_scale),
        scheduler=defaults.scheduler,
        seed=seed,
    )
    uploads = {"inputs/warm-up/0.png": picture, "inputs/warm-up/1.png": noise(64, seed)}
    return EngineJob("warm-up", request, uploads.__getitem__)


def noise(side: int, seed: int) -> Image.Image:
    """A picture of coloured blocks, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(blocks.numpy()).resize((side, side), Image.Resampling.NEAREST)


def digest(image: Image.Image) -> str:
    """The SHA-256 of a picture's pixels, hex."""
    return hashlib.sha256(image.tobytes()).hexdigest()


class Profiler:
    """Measures on the engine's thread; every method must be called there."""

    def __init__(self, name: str, model: Model, batcher: Batcher, preparer: JobPreparer) -> None:
        self._name = name
        self._model = model
        self._batcher = batcher
        self._preparer = preparer

    def seconds(self, size: tuple[int, int], most_entries: int) -> dict[int, float]:
        """Time of one forward of guided rows of `size` (width, height), by number of entries.

        The number doubles while that still pays. A number that seems not to pay is measured again
        before it ends the doubling, since other work on the machine looks the same.
        """
        row = self._row(job(self._name, self._model, size=size))
        measured: dict[int, float] = {}
        rows, best = 1, 0.0
        while 2 * rows <= most_entries:
            entries = 2 * rows
            measured[entries] = float("inf")
            for _ in range(ATTEMPTS):
                times = (self._time([row] * rows) for _ in range(REPEATS))
                measured[entries] = min(measured[entries], *times)
                rate = entries / measured[entries]
                if rate >= GAIN * best:
                    break
            else:
                break
            best = rate
            rows *= 2
        return measured

    def colours(self, decoder: Decoder, size: tuple[int, int]) -> torch.Tensor:
        """Fit the previews' map from latents to colours on real decodes."""
        latents, pictures = [], []
        for seed in range(PREVIEW_PICTURES):
            row = self._row(job(self._name, self._model, size=size, seed=seed))
            while not row.done:
                row.advance(self._batcher.predict([row]).values)
            latents.append(row.latents)
            pictures.append(decoder.decode(self._model, row.latents)())
        return preview.fit(latents, pictures)

    def _row(self, engine_job: EngineJob) -> Row:
        work = Work(
            job=engine_job,
            model=self._model,
            ticket=EngineTicket(),
            listener=NullObserver(),
            arrival=0,
            submitted_at=now(),
            gathered=self._preparer.gather(engine_job, self._model),
        )
        return self._preparer.rows_of(work)[0]

    def _time(self, rows: list[Row]) -> float:
        _finish(self._model.device)
        started = time.perf_counter()
        self._batcher.predict(rows)
        _finish(self._model.device)
        return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
