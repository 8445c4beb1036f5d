"""Draw scenes as pixels: signed distances, anti-aliased, a whole batch at once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from training.world import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    STRIPE_ANGLE,
    STRIPE_SHADE,
    STRIPE_WIDTH,
    Scenes,
)

STAR_INNER: Final = 0.42
RING_HOLE: Final = 0.55
CROSS_HALF_WIDTH: Final = 0.32
#: How far `Looks.proportion` moves each of the three.
STAR_SPREAD: Final = 0.08
RING_SPREAD: Final = 0.13
CROSS_SPREAD: Final = 0.09
#: Width of the control map's line, in parts of the side.
OUTLINE_WIDTH: Final = 1 / 48
#: Looks of the LoRAs, in parts of the side: distance and radius of dots, a hollow object's line.
DOT_SPACING: Final = 7 / 32
DOT_RADIUS: Final = 9 / 128
HOLLOW_WIDTH: Final = 1 / 16


def _circle(x: Tensor, y: Tensor, _proportion: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def _square(x: Tensor, y: Tensor, _proportion: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - math.sqrt(0.5)


def _triangle(x: Tensor, y: Tensor, _proportion: Tensor) -> Tensor:
    half = math.sqrt(3) / 2
    return torch.maximum(torch.maximum(-x, 0.5 * x + half * y), 0.5 * x - half * y) - 0.5


def _star(x: Tensor, y: Tensor, proportion: Tensor) -> Tensor:
    # Folded into one half of one point, the outline is a single straight edge.
    inner = STAR_INNER + STAR_SPREAD * proportion
    sector = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(y, x) + sector / 2, sector) - sector / 2
    length = torch.hypot(x, y)
    u, v = length * torch.cos(angle), length * torch.sin(angle).abs()
    du, dv = inner * math.cos(sector / 2) - 1, inner * math.sin(sector / 2)
    return ((u - 1) * dv - v * du) / torch.hypot(du, dv)


def _ring(x: Tensor, y: Tensor, proportion: Tensor) -> Tensor:
    length = torch.hypot(x, y)
    return torch.maximum(length - 1, RING_HOLE - RING_SPREAD * proportion - length)


def _cross(x: Tensor, y: Tensor, proportion: Tensor) -> Tensor:
    half = CROSS_HALF_WIDTH + CROSS_SPREAD * proportion
    x, y = x.abs(), y.abs()
    return torch.minimum(torch.maximum(x - 1, y - half), torch.maximum(x - half, y - 1))


_DISTANCES: Final = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}


def _places(scenes: Scenes, size: int) -> tuple[Tensor, Tensor]:
    """Return where in the scene each pixel looks, x and y in parts of the side.

    `(1, 1, size)` and `(1, size, 1)`, or `(n, size, size)` each where the scenes have looks.
    """
    axis = (torch.arange(size) + 0.5) / size
    x, y = axis[None, None, :], axis[None, :, None]
    if scenes.looks is None:
        return x, y
    stretch, shear, turn_x, turn_y = scenes.looks.warp.T[:, :, None, None]
    amplitude, waves_x, waves_y, phase_x, phase_y = scenes.looks.wobble.T[:, :, None, None]
    x, y = x - 0.5, y - 0.5
    depth = 1 + turn_x * x + turn_y * y
    x, y = ((1 + stretch) * x + shear * y) / depth + 0.5, y / depth + 0.5
    sway = 2 * math.pi
    return (
        x + amplitude * torch.sin(sway * waves_x * y + phase_x),
        y + amplitude * torch.sin(sway * waves_y * x + phase_y),
    )


def distance(scenes: Scenes, size: int) -> Tensor:
    """Signed distance to the object's outline in parts of the side, `(n, size, size)`.

    Negative inside. The outermost points of every shape lie on its radius. Where the scenes have
    looks, it is the distance before the picture was warped.
    """
    x, y = _places(scenes, size)
    x = x - scenes.x[:, None, None]
    y = y - scenes.y[:, None, None]
    cos = (torch.cos(scenes.angle) / scenes.radius)[:, None, None]
    sin = (torch.sin(scenes.angle) / scenes.radius)[:, None, None]
    u, v = cos * x + sin * y, cos * y - sin * x
    proportion = torch.zeros(len(scenes), 1)
    if scenes.looks is not None:
        proportion = scenes.looks.proportion
    result = torch.empty(len(scenes), size, size)
    for index, name in enumerate(SHAPES):
        rows = (scenes.shape == index).nonzero()[:, 0]
        if len(rows):
            result[rows] = _DISTANCES[name](u[rows], v[rows], proportion[rows][..., None])
    return result * scenes.radius[:, None, None]


def mask(scenes: Scenes, size: int) -> Tensor:
    """Return how much of each pixel the object covers, 0 to 1, `(n, size, size)`."""
    return (0.5 - distance(scenes, size) * size).clamp(0, 1)


def bands(size: int) -> Tensor:
    """Return the bright share of the clean diagonal bands, fixed to the picture, `(size, size)`."""
    axis = (torch.arange(size) + 0.5) / size
    one = torch.ones(())
    return _bands(
        axis[None, :], axis[None, :].T, (STRIPE_ANGLE * one, 0 * one, STRIPE_WIDTH * one), size
    )


def _bands(x: Tensor, y: Tensor, stripes: tuple[Tensor, Tensor, Tensor], size: int) -> Tensor:
    """Return the bright share of bands of a direction, an offset and a width."""
    angle, offset, width = stripes
    along = x * torch.cos(angle) + y * torch.sin(angle) + offset
    from_middle = torch.remainder(along + width / 2, 2 * width) - width
    return (0.5 + (width / 2 - from_middle.abs()) * size).clamp(0, 1)


def draw(scenes: Scenes, size: int) -> Tensor:
    """Draw the scenes, `(n, 3, size, size)`, uint8."""
    paint = torch.tensor(list(COLOURS.values()), dtype=torch.float32)[scenes.colour]
    ground = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)[scenes.background]
    cover = mask(scenes, size)
    bright, dark, light = bands(size), torch.tensor(STRIPE_SHADE), torch.ones(())
    if scenes.looks is not None:
        looks = scenes.looks
        angle, offset, width, shade = looks.stripes.T[:, :, None, None]
        dark = shade
        place = (torch.arange(size) + 0.5) / size
        bright = _bands(place, place[:, None], (angle, offset, width), size)
        paint, ground = (paint + looks.paint).clamp(0, 255), (ground + looks.ground).clamp(0, 255)
        axis = (torch.arange(size) + 0.5) / size - 0.5
        level, across, down = looks.light.T[:, :, None, None]
        light = (level * (1 + across * axis + down * axis[:, None]))[:, None]
    bright = torch.where((scenes.fill == 1)[:, None, None], bright, torch.ones(()))
    shaded = cover * (dark + (1 - dark) * bright)
    picture = paint[:, :, None, None] * shaded[:, None]
    picture = picture + ground[:, :, None, None] * (1 - cover)[:, None]
    return (picture * light).clamp(0, 255).round().to(torch.uint8)


def dots(size: int) -> Tensor:
    """Return the dark share of dots that are fixed to the picture, 0 to 1, `(size, size)`."""
    axis = torch.remainder((torch.arange(size) + 0.5) / size, DOT_SPACING) - DOT_SPACING / 2
    return (0.5 + (DOT_RADIUS - torch.hypot(axis, axis[:, None])) * size).clamp(0, 1)


def draw_dotted(scenes: Scenes, size: int) -> Tensor:
    """Draw the scenes with dark dots on solid objects, `(n, 3, size, size)`, uint8."""
    solid = draw(replace(scenes, fill=torch.zeros_like(scenes.fill)), size)
    shade = 1 - (1 - STRIPE_SHADE) * dots(size) * mask(scenes, size)
    return (solid * shade[:, None]).round().to(torch.uint8)


def draw_hollow(scenes: Scenes, size: int) -> Tensor:
    """Draw the scenes with solid objects of which a line is left, `(n, 3, size, size)`, uint8."""
    solid = draw(replace(scenes, fill=torch.zeros_like(scenes.fill)), size)
    ground = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)[scenes.background]
    inside = (0.5 - (distance(scenes, size) + HOLLOW_WIDTH) * size).clamp(0, 1)[:, None]
    return (solid * (1 - inside) + ground[:, :, None, None] * inside).round().to(torch.uint8)


def outline(scenes: Scenes, size: int) -> Tensor:
    """Draw the control map: the object's white outline on black, `(n, 3, size, size)`, uint8."""
    line = OUTLINE_WIDTH * size / 2 + 0.5 - distance(scenes, size).abs() * size
    return (255 * line.clamp(0, 1)).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
