"""Start-up's real jobs and measurements, so that the first client waits for nothing.

Runs a job of each class through the engine, then measures one forward at growing batch sizes and
sets the caps. It knows nothing of how a step is taken.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Final

import torch
from PIL import Image

from service.core.params import Control, GenerateRequest, ImagePrompt
from workers.engine import inputs, preview
from workers.engine.api import EngineJob
from workers.engine.batch import Batcher
from workers.engine.cache import EmbeddingCache
from workers.engine.decode import Decoder
from workers.engine.loading import LoadedModel
from workers.engine.rows import Row, Work, now
from workers.engine.silent import Silent
from workers.engine.ticket import EngineTicket

STEPS: Final = 2
REPEATS: Final = 3
GAIN: Final = 1.02
"""Doubling the batch is tried on while it raises the rate by so much."""
PREVIEW_PICTURES: Final = 4


def classes(name: str, model: LoadedModel) -> Iterator[EngineJob]:
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
    model: LoadedModel,
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
    request = GenerateRequest(
        model=name,
        adapter=adapter or defaults.adapter,
        images=(
            ImagePrompt(
                key="inputs/warm-up/0.png",
                sha256=pixels,
                pixels_sha256=pixels,
                width=picture.width,
                height=picture.height,
            ),
        ),
        control=Control(key="inputs/warm-up/1.png", sha256=pixels, type=control)
        if control
        else None,
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
    """Measures on the engine's thread; every method must be called there.

    `rows_of` makes the rows of a job whose inputs have been gathered.
    """

    def __init__(
        self, name: str, model: LoadedModel, batcher: Batcher, rows_of: Callable[[Work], list[Row]]
    ) -> None:
        self._name = name
        self._model = model
        self._batcher = batcher
        self._rows_of = rows_of

    def seconds(self, size: tuple[int, int], most_places: int) -> dict[int, float]:
        """Time of one forward of guided rows of `size` (width, height), by number of places.

        The number doubles while that still pays.
        """
        row = self._row(job(self._name, self._model, size=size))
        measured: dict[int, float] = {}
        rows, best = 1, 0.0
        while 2 * rows <= most_places:
            places = 2 * rows
            measured[places] = min(self._time([row] * rows) for _ in range(REPEATS))
            rate = places / measured[places]
            if rate < GAIN * best:
                break
            best = max(best, rate)
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
        cache = EmbeddingCache(PREVIEW_PICTURES, None)
        work = Work(
            job=engine_job,
            model=self._model,
            ticket=EngineTicket(),
            listener=Silent(),
            arrival=0,
            submitted_at=now(),
            inputs=inputs.gather(engine_job, self._model, images=cache, texts=cache),
        )
        return self._rows_of(work)[0]

    def _time(self, rows: list[Row]) -> float:
        _finish(self._model.device)
        started = time.perf_counter()
        self._batcher.predict(rows)
        _finish(self._model.device)
        return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
