"""The evaluation's cases: which image prompts, texts and outlines, fixed by a seed beforehand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from training import captions, drawing, world
from training.architecture import SHAPES as MODEL
from training.world import Scenes

SEED: Final = 2026
NUMBER: Final = 200


@dataclass(frozen=True)
class Cases:
    """`prompts` are the scenes of the image prompts; texts and outlines go with them row by row.

    `backgrounds` are other backgrounds than the prompts', `outlines` the prompts' paint on other
    shapes, elsewhere.
    """

    prompts: Scenes
    held_out: Scenes
    backgrounds: Tensor
    outlines: Scenes


def cases(n: int = NUMBER, seed: int = SEED) -> Cases:
    """Return `n` cases, the same each time."""
    generator = torch.Generator().manual_seed(seed)
    prompts = world.sample(n, generator)
    held_out = world.sample(n, generator, held_out=True)
    step = torch.randint(1, len(world.BACKGROUNDS), (n,), generator=generator)
    backgrounds = (prompts.background + step) % len(world.BACKGROUNDS)
    step = torch.randint(1, len(world.SHAPES), (n,), generator=generator)
    other = replace(prompts, shape=(prompts.shape + step) % len(world.SHAPES))
    chosen = torch.stack([other.shape, other.colour, other.fill, other.background], dim=1)
    return Cases(prompts, held_out, backgrounds, world.place(chosen, generator))


def pictures(scenes: Scenes) -> Tensor:
    """Draw image prompts at the model's size, uint8."""
    return drawing.draw(scenes, MODEL.size)


def full_captions(scenes: Scenes) -> list[str]:
    """Write the caption that names all four attributes of each scene."""
    rows = torch.stack([scenes.shape, scenes.colour, scenes.fill, scenes.background], dim=1)
    return [captions.caption(*row) for row in rows.tolist()]
