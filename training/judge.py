"""Read a picture's attributes by measuring its pixels; no network takes part.

Background: the palette colour nearest to the border's median. Object: what differs from it. Shape:
the template that overlaps the object best over all rotations. Fill: how far apart the bright and
dark diagonal bands lie. Colour: the palette colour nearest to the bright part's median.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from training import drawing
from training.world import BACKGROUNDS, COLOURS, SHAPES, STRIPE_SHADE, STRIPE_WIDTH, Scenes

#: Pixels further than this from the background's colour (euclidean, 0 to 255) are the object's.
THRESHOLD: Final = 45.0
#: Share of its picture below which an object counts as missing.
SMALLEST: Final = 0.02
ROTATIONS: Final = 24
TEMPLATE: Final = 48
#: A drawn object's stripes differ by 0.65 of its brightness; half-way is the border.
STRIPED_FROM: Final = 0.3


@dataclass(frozen=True)
class Verdict:
    """Attributes read off a batch, indices into the world's names, `(n,)`, long.

    `mask` is the object's area `(n, size, size)`, bool. A picture without an object has shape,
    colour and fill of -1.
    """

    shape: Tensor
    colour: Tensor
    fill: Tensor
    background: Tensor
    mask: Tensor


def judge(pictures: Tensor) -> Verdict:
    """Read uint8 pictures `(n, 3, size, size)`."""
    rows = [_judge_one(picture.float()) for picture in pictures]
    columns = list(zip(*rows, strict=True))
    shape, colour, fill, background = (torch.tensor(column) for column in columns[:4])
    return Verdict(shape, colour, fill, background, torch.stack(columns[4]))


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boolean masks `(n, size, size)`, `(n,)`."""
    both = (first & second).flatten(1).sum(1)
    either = (first | second).flatten(1).sum(1)
    return both / either.clamp(min=1)


def _judge_one(picture: Tensor) -> tuple[int, int, int, int, Tensor]:
    size = picture.shape[-1]
    edge = max(2, size // 32)
    border = torch.ones(size, size, dtype=torch.bool)
    border[edge:-edge, edge:-edge] = False
    around = picture[:, border].median(1).values
    background = _nearest(around, tuple(BACKGROUNDS.values()))
    mask = _clean((picture - around[:, None, None]).norm(dim=0) > THRESHOLD)
    if mask.float().mean() < SMALLEST:
        return -1, -1, -1, background, mask
    bright, contrast = _bands(picture, mask)
    fill = int(contrast > STRIPED_FROM)
    colour = _nearest(bright, tuple(COLOURS.values()))
    shaded = STRIPE_SHADE * torch.tensor(tuple(COLOURS.values())[colour])
    if fill and (shaded - around).norm() < 1.5 * THRESHOLD:
        mask = _bridge(mask)
    return _shape(mask), colour, fill, background, mask


def _nearest(colour: Tensor, palette: tuple[tuple[int, int, int], ...]) -> int:
    distances = (torch.tensor(palette, dtype=torch.float32) - colour).norm(dim=1)
    return int(distances.argmin())


def _clean(mask: Tensor) -> Tensor:
    """Drop specks: a pixel stays if most of the pixels around it belong to the object too."""
    around = functional.avg_pool2d(mask[None, None].float(), 5, 1, 2, count_include_pad=False)
    return mask & (around[0, 0] > 0.4)


def _bands(picture: Tensor, mask: Tensor) -> tuple[Tensor, float]:
    """Return the bright part's colour and how much darker the dark part is, 0 to 1.

    The dark bands of blue on navy, of orange on brown, cannot be told from the background; so the
    dark part is looked for in the object's hull, and the hull's notches do not lie on diagonals.
    """
    size = picture.shape[-1]
    inner = functional.avg_pool2d(_bridge(mask)[None, None].float(), 5, 1, 2)[0, 0] > 0.99
    if inner.sum() < 20:
        inner = mask
    stripes = drawing.bands(size)
    light, dark = inner & (stripes > 0.9), inner & (stripes < 0.1)
    if not light.any() or not dark.any():
        return picture[:, inner].median(1).values, 0.0
    first, second = picture[:, light].median(1).values, picture[:, dark].median(1).values
    if second.sum() > first.sum():
        first, second = second, first
    contrast = 1 - (second.sum() / first.sum().clamp(min=1)).item()
    if contrast <= STRIPED_FROM:
        return picture[:, inner].median(1).values, contrast
    return first, contrast


def _bridge(mask: Tensor) -> Tensor:
    """Close gaps of one band's width across the diagonals: dark bands lost in the background."""
    size = mask.shape[-1]
    reach = round(STRIPE_WIDTH * size / 2**0.5 / 2) + 1
    kernel = torch.eye(2 * reach + 1)[None, None]
    # Dilate, then erode, along the line across the bands.
    wide = functional.conv2d(mask[None, None].float(), kernel, padding=reach) > 0
    full = functional.conv2d((~wide).float(), kernel, padding=reach) == 0
    return full[0, 0] | mask


def _shape(mask: Tensor) -> int:
    """Find the best overlap over shapes and rotations, each drawn with the mask's own area."""
    size = mask.shape[-1]
    ys, xs = mask.nonzero().float().unbind(1)
    x, y = (xs.mean() + 0.5) / size, (ys.mean() + 0.5) / size
    templates, areas = _templates()
    # Crop a window around the centre so that the object's area is the template's.
    best = torch.zeros(len(SHAPES))
    for shape in range(len(SHAPES)):
        half = (mask.float().mean() / areas[shape]).sqrt()
        axis = torch.linspace(-1, 1, TEMPLATE) * half * 1.25
        grid = torch.stack(torch.meshgrid(y + axis, x + axis, indexing="ij")[::-1], dim=-1)
        window = functional.grid_sample(
            mask[None, None].float(), grid[None] * 2 - 1, align_corners=False
        )[0, 0]
        window = window > 0.5
        drawn = templates[shape]
        best[shape] = overlap(drawn, window.expand_as(drawn)).max()
    return int(best.argmax())


@cache
def _templates() -> tuple[Tensor, Tensor]:
    """Masks `(shapes, rotations, side, side)` of radius 0.8 of the half-side, and unit areas.

    A unit area is the shape's area for a radius of one side.
    """
    number = len(SHAPES) * ROTATIONS
    shape = torch.arange(len(SHAPES)).repeat_interleave(ROTATIONS)
    angle = torch.arange(ROTATIONS).repeat(len(SHAPES)) * (2 * torch.pi / ROTATIONS)
    middle, zero = torch.full((number,), 0.5), torch.zeros(number, dtype=torch.long)
    scenes = Scenes(shape, zero, zero, zero, middle, middle, torch.full((number,), 0.4), angle)
    masks = drawing.mask(scenes, TEMPLATE) > 0.5
    areas = drawing.mask(scenes, 4 * TEMPLATE).flatten(1).mean(1) / 0.4**2
    return masks.unflatten(0, (len(SHAPES), -1)), areas[::ROTATIONS]
