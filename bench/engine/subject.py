"""What a bench run is made on: a model, its sizes and steps, and the jobs that are asked of it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from PIL.Image import Image

from bench.engine import tasks
from service.core.catalog import Catalog, load_catalog
from service.core.params import GenerateRequest
from service.core.settings import ROOT
from workers.engine.api import EngineJob
from workers.engine.warmup import noise

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Subject:
    """One model and how it is measured. Sizes are (width, height) in pixels.

    `single` is the size and `steps` the steps of a job alone, `burst` and `burst_steps` those of
    many jobs at once, `other` a second size for the mixed load; `long` and `short` are the steps
    of the jobs that wait for each other.
    """

    title: str
    models: Path
    catalog: Catalog
    single: Size
    burst: Size
    other: Size
    mixed_jobs: int
    steps: int = 30
    burst_steps: int = 20
    mixed_steps: Sequence[int] = (4, 10, 20, 30, 50)
    long: int = 50
    short: int = 4
    repeats: int = 3

    @property
    def control_type(self) -> str:
        """The model's first ControlNet."""
        return next(iter(self.catalog.models[self.catalog.default].controlnets))

    def job(
        self, seed: int, *, size: Size, steps: int, control: bool = False, **fields: Any
    ) -> EngineJob:
        """A guided job with an image prompt of its own; `fields` are those of a request."""
        entry = self.catalog.models[self.catalog.default]
        picture = noise(tasks.PICTURE, seed)
        prompt = tasks.upload("0", picture)
        if control:
            fields |= {"control_image": (prompt,), "control_type": (self.control_type,)}
        wanted: dict[str, Any] = {
            "model": self.catalog.default,
            "adapter": "base",
            "image": (prompt,),
            "image_weights": (1.0,),
            "ip_scale": (1.0,),
            "width": size[0],
            "height": size[1],
            "steps": steps,
            "guidance_scale": entry.defaults.guidance_scale,
            "scheduler": entry.defaults.scheduler,
            "seed": seed,
        }
        request = GenerateRequest(**{**wanted, **fields})
        return EngineJob(f"bench-{seed}", request, partial(_read, picture, seed))

    def tasks(self, seed: int) -> list[EngineJob]:
        """Nine jobs of as many tasks."""
        asked = tasks.tasks(seed, self.control_type).values()
        size, steps = self.burst, self.burst_steps
        return [
            self.job(seed + number, size=size, steps=steps, **fields)
            for number, fields in enumerate(asked)
        ]

    def mixed(self) -> list[EngineJob]:
        """Jobs of a mixed load: steps, sizes and ControlNet drawn once and for all."""
        draw = random.Random(0)  # noqa: S311 (a load, not a secret)
        return [
            self.job(
                1000 + number,
                size=draw.choice((self.burst, self.other)),
                steps=draw.choice(self.mixed_steps),
                control=draw.random() < 0.3,
            )
            for number in range(self.mixed_jobs)
        ]


def _read(picture: Image, seed: int, key: str) -> Image:
    name = PurePosixPath(key).stem
    if name in ("left", "right"):
        return tasks.mask(name)
    return noise(tasks.PICTURE, seed + 1) if name == "second" else picture


def bundled(scratch: Path) -> Subject:
    """The bundled model; before it is trained, random weights of the same architecture."""
    models = ROOT / "models" / "shapes.yaml"
    title = "the bundled model"
    if not (models.parent / "shapes" / "model_index.json").exists():
        from training import architecture, layout, tiny  # noqa: PLC0415 (needed only then)

        layout.write(tiny.parts(architecture.SHAPES), scratch / "shapes")
        title = "random weights of the bundled model's architecture"
        content = models.read_text(encoding="utf-8")
        models = scratch / "shapes.yaml"
        models.write_text(content, encoding="utf-8")
    return Subject(
        title=title,
        models=models,
        catalog=tasks.extended(load_catalog(models), scratch),
        single=(128, 128),
        burst=(128, 128),
        other=(96, 96),
        mixed_jobs=14,
    )


def full_size(scratch: Path) -> Subject:
    """SDXL, IP-Adapter and ControlNet of full size and random weights."""
    from bench.engine import sdxl  # noqa: PLC0415 (needed only then)

    models = _catalog(scratch, sdxl.build(scratch / "sdxl"), size=1024, warm=(512, 768))
    return Subject(
        title="full-size SDXL of random weights",
        models=models,
        catalog=tasks.extended(load_catalog(models), scratch),
        single=(1024, 1024),
        burst=(512, 512),
        other=(768, 768),
        mixed_jobs=16,
    )


def tiny_size(scratch: Path) -> Subject:
    """The tiny test model, to try the GPU bench's command where there is no GPU."""
    from training import tiny  # noqa: PLC0415 (needed only then)

    models = _catalog(scratch, tiny.build(scratch / "sdxl"), size=64, warm=(96,))
    return Subject(
        title="the tiny test model (not a measurement)",
        models=models,
        catalog=tasks.extended(load_catalog(models), scratch),
        single=(64, 64),
        burst=(64, 64),
        other=(96, 96),
        mixed_jobs=4,
        steps=3,
        burst_steps=2,
        mixed_steps=(1, 2, 4),
        long=8,
        short=1,
        repeats=1,
    )


def _catalog(scratch: Path, folder: Path, *, size: int, warm: Sequence[int]) -> Path:
    adapter = {
        "path": str(folder),
        "subfolder": "adapters",
        "weight_name": "ip-adapter.safetensors",
        "image_encoder": "image_encoder",
    }
    plus = {**adapter, "weight_name": "ip-adapter-plus.safetensors"}
    entry = {
        "title": "bench",
        "base": {"path": str(folder)},
        "adapters": {"base": adapter, "plus": plus},
        "controlnets": {"outline": {"path": str(folder / "controlnets" / "outline")}},
        "limits": {"min_size": 64, "max_size": 2048, "max_pixels": 2048 * 2048},
        "defaults": {"width": size, "height": size, "adapter": "base", "guidance_scale": 7.5},
        "warm_sizes": [[side, side] for side in (size, *warm)],
    }
    path = scratch / "models.yaml"
    path.write_text(yaml.safe_dump({"default": "bench", "models": {"bench": entry}}))
    return path
