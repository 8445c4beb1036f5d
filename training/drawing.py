"""Draw scenes as pixels: signed distances, anti-aliased, a whole batch at once.

This file knows scenes and pixels; it knows nothing of sentences or networks.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from training.world import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    STRIPE_SHADE,
    STRIPE_WIDTH,
    Scenes,
)

STAR_INNER: Final = 0.42
RING_HOLE: Final = 0.55
CROSS_HALF_WIDTH: Final = 0.32
#: Width of the control map's line, in parts of the side.
OUTLINE_WIDTH: Final = 1 / 48


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - math.sqrt(0.5)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    half = math.sqrt(3) / 2
    return torch.maximum(torch.maximum(-x, 0.5 * x + half * y), 0.5 * x - half * y) - 0.5


def _star(x: Tensor, y: Tensor) -> Tensor:
    # Folded into one half of one point, the outline is a single straight edge.
    sector = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(y, x) + sector / 2, sector) - sector / 2
    length = torch.hypot(x, y)
    u, v = length * torch.cos(angle), length * torch.sin(angle).abs()
    du, dv = STAR_INNER * math.cos(sector / 2) - 1, STAR_INNER * math.sin(sector / 2)
    norm = math.hypot(du, dv)
    return ((u - 1) * dv - v * du) / norm


def _ring(x: Tensor, y: Tensor) -> Tensor:
    length = torch.hypot(x, y)
    return torch.maximum(length - 1, RING_HOLE - length)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.minimum(
        torch.maximum(x - 1, y - CROSS_HALF_WIDTH), torch.maximum(x - CROSS_HALF_WIDTH, y - 1)
    )


_DISTANCES: Final = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}


def distance(scenes: Scenes, size: int) -> Tensor:
    """Signed distance to the object's outline in parts of the side, `(n, size, size)`.

    Negative inside. The outermost points of every shape lie on its radius.
    """
    axis = (torch.arange(size) + 0.5) / size
    x = axis[None, None, :] - scenes.x[:, None, None]
    y = axis[None, :, None] - scenes.y[:, None, None]
    cos = (torch.cos(scenes.angle) / scenes.radius)[:, None, None]
    sin = (torch.sin(scenes.angle) / scenes.radius)[:, None, None]
    u, v = cos * x + sin * y, cos * y - sin * x
    result = torch.empty(len(scenes), size, size)
    for index, name in enumerate(SHAPES):
        rows = (scenes.shape == index).nonzero()[:, 0]
        if len(rows):
            result[rows] = _DISTANCES[name](u[rows], v[rows])
    return result * scenes.radius[:, None, None]


def mask(scenes: Scenes, size: int) -> Tensor:
    """Return how much of each pixel the object covers, 0 to 1, `(n, size, size)`."""
    return (0.5 - distance(scenes, size) * size).clamp(0, 1)


def bands(size: int) -> Tensor:
    """Return the bright share of the diagonal bands, fixed to the picture, `(size, size)`."""
    axis = (torch.arange(size) + 0.5) / size
    along = (axis[None, :] + axis[:, None]) / math.sqrt(2)
    from_middle = torch.remainder(along + STRIPE_WIDTH / 2, 2 * STRIPE_WIDTH) - STRIPE_WIDTH
    edge = STRIPE_WIDTH / 2 - from_middle.abs()
    return (0.5 + edge * size).clamp(0, 1)


def draw(scenes: Scenes, size: int) -> Tensor:
    """Draw the scenes, `(n, 3, size, size)`, uint8."""
    colours = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    backgrounds = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)
    cover = mask(scenes, size)
    bright = torch.where((scenes.fill == 1)[:, None, None], bands(size), torch.ones(()))
    shade = cover * (STRIPE_SHADE + (1 - STRIPE_SHADE) * bright)
    colour = colours[scenes.colour][:, :, None, None] * shade[:, None]
    background = backgrounds[scenes.background][:, :, None, None] * (1 - cover)[:, None]
    return (colour + background).round().to(torch.uint8)


def outline(scenes: Scenes, size: int) -> Tensor:
    """Draw the control map: the object's white outline on black, `(n, 3, size, size)`, uint8."""
    line = OUTLINE_WIDTH * size / 2 + 0.5 - distance(scenes, size).abs() * size
    return (255 * line.clamp(0, 1)).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
