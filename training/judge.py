"""Read a picture's attributes by measuring its pixels; no network takes part.

Background: the palette colour nearest to the border's median. Object: what differs from it. Shape:
the template that overlaps the object best over all rotations. Fill: how far apart the object's
bright and dark pixels lie. Colour: the palette colour nearest to the bright part's median.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
#: A drawn object's stripes differ by 0.5 to 0.78 of its brightness; half-way is the border.
STRIPED_FROM: Final = 0.3
#: Stripes cover this share of an object at least, bright and dark alike.
SMALLER_PART: Final = 0.12
#: Directions along which gaps are closed that dark bands lost in the background leave.
DIAGONAL: Final = (1, 1)
DIRECTIONS: Final = (DIAGONAL, (0, 1), (1, 0), (1, -1))

#: Pixels inside and between dots below which there are none; by what share dots must be darker than
#: what is between them; which share of a hollow object may be thicker than a line.
FEWEST: Final = 12
LOOK_FROM: Final = 0.4
THICK_AT_MOST: Final = 0.15


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


def dotted(pictures: Tensor) -> Tensor:
    """Tell which uint8 pictures show an object with dark dots on a grid, `(n,)`, bool."""
    pattern = drawing.dots(pictures.shape[-1])
    dark, light = pattern > 0.9, pattern < 0.1
    stripes = drawing.bands(pictures.shape[-1]) < 0.5
    found = []
    for picture, mask in zip(pictures.float(), judge(pictures).mask, strict=True):
        # Dots as dark as the background leave gaps in the mask.
        hull, level = _closed(mask, round(drawing.DOT_RADIUS * len(mask)) + 1), picture.mean(0)
        inside, between = level[hull & dark], level[hull & light]
        if min(len(inside), len(between)) < FEWEST:
            found.append(False)
            continue
        grey = between.median()
        darker = level < (1 - STRIPED_FROM) * grey
        of_dots = darker[hull & dark].float().mean() - darker[hull & light].float().mean()
        of_bands = darker[hull & stripes].float().mean() - darker[hull & ~stripes].float().mean()
        found.append(bool(of_dots > LOOK_FROM and of_dots > of_bands))
    return torch.tensor(found)


def hollow(pictures: Tensor) -> Tensor:
    """Tell which uint8 pictures show an object as a line: nowhere thicker, `(n,)`, bool."""
    masks = judge(pictures).mask
    # A disc of 1.25 times the width that is drawn lies nowhere inside a line, even a blurred one.
    reach = 0.625 * drawing.HOLLOW_WIDTH * masks.shape[-1]
    steps = torch.arange(-math.floor(reach), math.floor(reach) + 1)
    disc = (torch.hypot(steps.float(), steps.float()[:, None]) <= reach).float()
    around = functional.conv2d((~masks)[:, None].float(), disc[None, None], padding=len(disc) // 2)
    thick = (around[:, 0] < 0.5) & masks
    area = masks.flatten(1).sum(1)
    thin = thick.flatten(1).sum(1) < THICK_AT_MOST * area
    return thin & (area >= SMALLEST * masks[0].numel())


#: How each look of `training.style` is seen.
LOOKS: Final[dict[str, Callable[[Tensor], Tensor]]] = {"dots": dotted, "hollow": hollow}


def _closed(mask: Tensor, reach: int) -> Tensor:
    """Close gaps of up to twice `reach` pixels."""
    wide = functional.max_pool2d(mask[None, None].float(), 2 * reach + 1, 1, reach)
    padded = functional.pad(-wide, [reach] * 4, value=-1.0)
    return -functional.max_pool2d(padded, 2 * reach + 1, 1)[0, 0] > 0.5


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
    bright, striped = _fill(picture, mask)
    colour = _nearest(bright, tuple(COLOURS.values()))
    shaded = STRIPE_SHADE * torch.tensor(tuple(COLOURS.values())[colour])
    if striped and (shaded - around).norm() < 1.5 * THRESHOLD:
        # Of the ways to close the gaps the one that leaves a shape.
        closed = [mask, *(_bridge(mask, direction) for direction in DIRECTIONS)]
        mask = max(closed, key=lambda one: _shape(one)[1])
    return _shape(mask)[0], colour, int(striped), background, mask


def _nearest(colour: Tensor, palette: tuple[tuple[int, int, int], ...]) -> int:
    distances = (torch.tensor(palette, dtype=torch.float32) - colour).norm(dim=1)
    return int(distances.argmin())


def _clean(mask: Tensor) -> Tensor:
    """Drop specks: a pixel stays if most of the pixels around it belong to the object too."""
    around = functional.avg_pool2d(mask[None, None].float(), 5, 1, 2, count_include_pad=False)
    return mask & (around[0, 0] > 0.4)


def _fill(picture: Tensor, mask: Tensor) -> tuple[Tensor, bool]:
    """Return the bright part's colour, and whether there is a dark part beside it."""
    inner = functional.avg_pool2d(mask[None, None].float(), 5, 1, 2)[0, 0] > 0.99
    if inner.sum() < 20:
        inner = mask
    bright, contrast = _halves(picture[:, inner])
    if contrast > STRIPED_FROM:
        return bright, True
    # The dark bands of blue on navy, of orange on brown, cannot be told from the background: what
    # is left of the object are bright bands, or its hull has dark ones.
    diagonal = (
        functional.avg_pool2d(_bridge(mask, DIAGONAL)[None, None].float(), 5, 1, 2)[0, 0] > 0.99
    )
    stripes = drawing.bands(picture.shape[-1])
    light, dark = diagonal & (stripes > 0.9), diagonal & (stripes < 0.1)
    if light.any() and dark.any():
        first, second = picture[:, light].median(1).values, picture[:, dark].median(1).values
        if second.sum() < (1 - STRIPED_FROM) * first.sum():
            return first, True
    return bright, _pieces(mask) > 1


def _halves(pixels: Tensor) -> tuple[Tensor, float]:
    """Split pixels `(3, n)` at the threshold that parts them best (Otsu).

    Return the bright part's median colour and how much darker the dark part is, 0 to 1; 0 and the
    median of all where one of the parts is small.
    """
    level = pixels.mean(0)
    low, high = level.quantile(0.02), level.quantile(0.98)
    best, chosen = torch.tensor(-1.0), level > low
    for threshold in torch.linspace(float(low), float(high), 18)[1:-1]:
        above = level > threshold
        share = above.float().mean()
        if not SMALLER_PART < share < 1 - SMALLER_PART:
            continue
        between = share * (1 - share) * (level[above].mean() - level[~above].mean()).square()
        if between > best:
            best, chosen = between, above
    everything = pixels.median(1).values
    if best < 0:
        return everything, 0.0
    first, second = pixels[:, chosen].median(1).values, pixels[:, ~chosen].median(1).values
    contrast = 1 - (second.sum() / first.sum().clamp(min=1)).item()
    return (first if contrast > STRIPED_FROM else everything), contrast


def _pieces(mask: Tensor) -> int:
    """Count the connected pieces that are a tenth of the mask or more."""
    labels = torch.arange(1.0, mask.numel() + 1).view_as(mask) * mask
    while True:
        spread = functional.max_pool2d(labels[None, None], 3, 1, 1)[0, 0] * mask
        if torch.equal(spread, labels):
            break
        labels = spread
    _, sizes = labels[mask].unique(return_counts=True)
    return int((sizes >= mask.sum() / 10).sum())


def _bridge(mask: Tensor, direction: tuple[int, int]) -> Tensor:
    """Close gaps of one band's width along a direction."""
    size = mask.shape[-1]
    reach = round(STRIPE_WIDTH * size / 2 / math.hypot(*direction)) + 1
    kernel = torch.zeros(2 * reach + 1, 2 * reach + 1)
    steps = torch.arange(-reach, reach + 1)
    kernel[reach + direction[0] * steps, reach + direction[1] * steps] = 1
    # Dilate, then erode.
    wide = functional.conv2d(mask[None, None].float(), kernel[None, None], padding=reach) > 0
    full = functional.conv2d((~wide).float(), kernel[None, None], padding=reach) == 0
    return full[0, 0] | mask


def _shape(mask: Tensor) -> tuple[int, float]:
    """Find the best overlap over shapes and rotations, each drawn with the mask's own area.

    Return the shape and the overlap.
    """
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
    return int(best.argmax()), float(best.max())


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
