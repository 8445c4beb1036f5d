"""Control maps as people and programs make them: an object's outline, or its filled area.

Lines are thin or thick, grey, broken, blurred or drawn by an unsteady hand; the picture that
belongs to them stays as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from training import augment, drawing
from training.world import Scenes

KINDS: Final = ("outline", "area")
#: Width of a line in parts of the side: a person's brush, a detector's single pixel.
THINNEST: Final = 1 / 128
THICKEST: Final = 1 / 20
#: Share of the maps that are drawn as `drawing.outline` does, white and even.
CLEAN: Final = 0.3
#: Chance of each change of the others: a grey line, gaps in it, an unsteady hand; blur a group.
GREY: Final = 0.4
BROKEN: Final = 0.3
UNSTEADY: Final = 0.4
BLURRED: Final = 0.3
#: Sway of an unsteady hand at most, in parts of the side.
SWAY: Final = 0.012
DARKEST: Final = 0.35


def draw(kind: str, scenes: Scenes, size: int, generator: torch.Generator) -> Tensor:
    """Draw maps of a kind, white on black, `(n, 3, size, size)`, 0 to 1. Scenes must have looks."""
    n = len(scenes)

    def chosen(chance: float) -> Tensor:
        return (torch.rand(n, 1, 1, generator=generator) < chance).float()

    rough = 1 - chosen(CLEAN)
    distance = drawing.distance(_unsteady(scenes, rough * chosen(UNSTEADY), generator), size)
    if kind == "area":
        drawn = (0.5 - distance * size).clamp(0, 1)
    else:
        width = _between(n, THINNEST, THICKEST, generator)
        width = torch.where(rough > 0, width, drawing.OUTLINE_WIDTH)
        drawn = (width * size / 2 + 0.5 - distance.abs() * size).clamp(0, 1)
    drawn = drawn * (1 - rough * chosen(GREY) * _between(n, 0, 1 - DARKEST, generator))
    drawn = drawn * (1 - rough * chosen(BROKEN) * _gaps(n, size, generator))
    if float(torch.rand((), generator=generator)) < BLURRED:
        drawn = augment.blur(drawn[:, None], 0.008)[:, 0]
    return drawn[:, None].expand(-1, 3, -1, -1)


def _between(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, 1, 1, generator=generator)


def _unsteady(scenes: Scenes, chosen: Tensor, generator: torch.Generator) -> Scenes:
    """Let the outline sway where `chosen`, `(n, 1, 1)`, is 1."""
    assert scenes.looks is not None
    wobble = torch.rand(len(scenes), 5, generator=generator)
    wobble = wobble * torch.tensor([SWAY, 4.0, 4.0, 6.3, 6.3]) + torch.tensor([0, 2.0, 2.0, 0, 0])
    wobble[:, :1] *= chosen[:, :, 0]
    return replace(scenes, looks=replace(scenes.looks, wobble=wobble))


def _gaps(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Return spots where a line is missing, a seventh of the picture, `(n, size, size)`, 0 to 1."""
    coarse = torch.rand(n, 1, 16, 16, generator=generator)
    spots = functional.interpolate(coarse, size=(size, size), mode="bilinear")[:, 0]
    return ((spots - 0.72) * 20).clamp(0, 1)
