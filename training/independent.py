"""A second renderer, for the evaluation alone: Pillow polygons, supersampled.

It shares names and palette with the world and no geometry, no pixels and no random numbers: no
stage of training may import it (`tests/training/test_independent.py`), so that what holds on its
pictures was not learnt from them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from training.world import BACKGROUND_NAMES, BACKGROUNDS, COLOUR_NAMES, COLOURS, HELD_OUT, SHAPES

Point: TypeAlias = tuple[float, float]
Pixels: TypeAlias = NDArray[np.floating]

SIZE: Final = 128
#: Pixels are drawn this many times finer and averaged.
SUPERSAMPLE: Final = 4
SHADE: Final = 0.35
STRIPES: Final = 3 / 32
STAR_INNER: Final = 0.4
RING_HOLE: Final = 0.52
CROSS_ARM: Final = 0.34


@dataclass(frozen=True)
class Picture:
    """One object: attributes as indices into the world's names, its place in parts of the side.

    `angle` and `direction` (across the stripes) are in degrees, counted clockwise; `offset` is a
    share of a pair of stripes, `width` a stripe's in parts of the side.
    """

    shape: int
    colour: int
    striped: int
    background: int
    x: float
    y: float
    radius: float
    angle: float
    direction: float = 45.0
    offset: float = 0.0
    width: float = STRIPES


@dataclass(frozen=True)
class Variant:
    """One way to draw image prompts. `stripes` changes a picture, `after` its pixels, 0 to 255."""

    name: str
    size: int = SIZE
    stripes: Callable[[Picture, random.Random], Picture] | None = None
    after: Callable[[Pixels, np.random.Generator], Pixels] | None = None


def _mirrored(picture: Picture, _: random.Random) -> Picture:
    return replace(picture, direction=135.0)


def _any_stripes(picture: Picture, dice: random.Random) -> Picture:
    return replace(picture, direction=dice.uniform(0, 180), width=dice.uniform(0.06, 0.13))


def _noisy(pixels: Pixels, dice: np.random.Generator) -> Pixels:
    return pixels + dice.normal(0, 12, pixels.shape)


def _off_colour(pixels: Pixels, dice: np.random.Generator) -> Pixels:
    return pixels + 12.0 * (2 * dice.integers(2, size=(1, 1, 3)) - 1)


def _darker(pixels: Pixels, _: np.random.Generator) -> Pixels:
    return pixels * 0.85


PLAIN: Final = Variant("stripes at another offset")
VARIANTS: Final = (
    PLAIN,
    Variant("at 512 pixels", size=512),
    Variant("noise of 12", after=_noisy),
    Variant("colours off by 12", after=_off_colour),
    Variant("15 % darker", after=_darker),
    Variant("stripes mirrored", stripes=_mirrored),
    Variant("any stripes", stripes=_any_stripes),
)


def pictures(n: int, seed: int, *, held_out: bool = False) -> list[Picture]:
    """Choose `n` pictures at random, the same each time for a seed."""
    dice = random.Random(seed)
    result: list[Picture] = []
    while len(result) < n:
        shape, colour = dice.randrange(len(SHAPES)), dice.randrange(len(COLOUR_NAMES))
        if ((COLOUR_NAMES[colour], SHAPES[shape]) in HELD_OUT) != held_out:
            continue
        radius = dice.uniform(0.2, 0.38)
        x, y = (dice.uniform(radius, 1 - radius) for _ in range(2))
        chosen = (shape, colour, dice.randrange(2), dice.randrange(len(BACKGROUND_NAMES)))
        result.append(
            Picture(*chosen, x, y, radius, dice.uniform(0, 360), offset=dice.uniform(0.6, 1.4))
        )
    return result


def attributes(chosen: list[Picture]) -> Tensor:
    """Stack shape, colour, fill and background, `(n, 4)`, long."""
    return torch.tensor([[p.shape, p.colour, p.striped, p.background] for p in chosen])


def draw(chosen: list[Picture], variant: Variant = PLAIN, seed: int = 0) -> Tensor:
    """Draw pictures in a variant, `(n, 3, size, size)`, uint8."""
    dice = random.Random(seed)
    noise = np.random.default_rng(seed)
    drawn = []
    for picture in chosen:
        changed = variant.stripes(picture, dice) if variant.stripes else picture
        pixels: Pixels = np.asarray(_draw(changed, variant.size), dtype=np.float64)
        if variant.after:
            pixels = variant.after(pixels, noise)
        drawn.append(torch.from_numpy(pixels.clip(0, 255).round().astype(np.uint8)))
    return torch.stack(drawn).permute(0, 3, 1, 2).contiguous()


def areas(chosen: list[Picture], size: int = SIZE) -> Tensor:
    """Return where the objects are, `(n, size, size)`, bool."""
    masks = [np.asarray(_mask(picture, size)) > 127 for picture in chosen]
    return torch.from_numpy(np.stack(masks))


@dataclass(frozen=True)
class Line:
    """How a control map's line is drawn: width in pixels of 128, grey level, sway of the hand."""

    name: str
    width: float = 3
    level: int = 255
    sway: float = 0


LINES: Final = (
    Line("outline"),
    Line("thin outline", width=1.2),
    Line("thick outline", width=7),
    Line("grey outline", level=140),
    Line("unsteady outline", sway=1.5),
)


def outlines(chosen: list[Picture], line: Line, seed: int = 0) -> Tensor:
    """Draw control maps, `(n, 3, size, size)`, 0 to 1."""
    dice = random.Random(seed)
    drawn = [np.asarray(_outline(picture, line, dice), dtype=np.float32) for picture in chosen]
    return torch.from_numpy(np.stack(drawn) / 255)[:, None].expand(-1, 3, -1, -1)


def _rings(picture: Picture) -> list[list[Point]]:
    """Return the closed outlines of an object: one, and the hole's for a ring."""
    name = SHAPES[picture.shape]
    if name in ("circle", "ring"):
        around = [_turn(1, 4.0 * step, picture) for step in range(90)]
        hole = [_turn(RING_HOLE, 4.0 * step, picture) for step in range(90)]
        return [around] if name == "circle" else [around, hole]
    if name == "star":
        return [[_turn((1, STAR_INNER)[k % 2], 36.0 * k, picture) for k in range(10)]]
    if name == "cross":
        long, wide = 1.0, CROSS_ARM
        quarter = [(long, -wide), (long, wide), (wide, wide)]
        points = [(math.hypot(*p), math.degrees(math.atan2(p[1], p[0]))) for p in quarter]
        return [[_turn(r, a + 90 * k, picture) for k in range(4) for r, a in points]]
    corners = {"square": 4, "triangle": 3}[name]
    return [[_turn(1, 360 / corners * k, picture) for k in range(corners)]]


def _turn(distance: float, degrees: float, picture: Picture) -> Point:
    angle = math.radians(degrees + picture.angle)
    reach = distance * picture.radius
    return picture.x + reach * math.cos(angle), picture.y + reach * math.sin(angle)


def _mask(picture: Picture, size: int) -> Image.Image:
    fine = size * SUPERSAMPLE
    mask = Image.new("L", (fine, fine))
    pen = ImageDraw.Draw(mask)
    for ring, level in zip(_rings(picture), (255, 0), strict=False):
        pen.polygon([(x * fine, y * fine) for x, y in ring], fill=level)
    return mask.resize((size, size), Image.Resampling.BOX)


def _stripes(picture: Picture, size: int) -> Image.Image:
    """Return the dark stripes, white on black."""
    fine = size * SUPERSAMPLE
    mask = Image.new("L", (fine, fine))
    pen = ImageDraw.Draw(mask)
    angle = math.radians(picture.direction)
    across = (math.cos(angle), math.sin(angle))
    along = (-across[1], across[0])
    pair = 2 * picture.width
    for number in range(-math.ceil(1.5 / pair), math.ceil(1.5 / pair) + 1):
        start = (number + picture.offset) * pair
        edges = [
            (start + w, far)
            for w, far in ((0, -2), (picture.width, -2), (picture.width, 2), (0, 2))
        ]
        pen.polygon(
            [
                (fine * (w * across[0] + far * along[0]), fine * (w * across[1] + far * along[1]))
                for w, far in edges
            ],
            fill=255,
        )
    return mask.resize((size, size), Image.Resampling.BOX)


def _draw(picture: Picture, size: int) -> Image.Image:
    red, green, blue = COLOURS[COLOUR_NAMES[picture.colour]]
    paint = Image.new("RGB", (size, size), (red, green, blue))
    if picture.striped:
        dark = (round(red * SHADE), round(green * SHADE), round(blue * SHADE))
        paint.paste(dark, mask=_stripes(picture, size))
    canvas = Image.new("RGB", (size, size), BACKGROUNDS[BACKGROUND_NAMES[picture.background]])
    canvas.paste(paint, mask=_mask(picture, size))
    return canvas


def _outline(picture: Picture, line: Line, dice: random.Random) -> Image.Image:
    fine = SIZE * SUPERSAMPLE
    canvas = Image.new("L", (fine, fine))
    pen = ImageDraw.Draw(canvas)
    for ring in _rings(picture):
        points = (
            [(x * fine, y * fine) for x, y in _steps(ring)]
            if line.sway
            else [(x * fine, y * fine) for x, y in ring]
        )
        spread = line.sway * SUPERSAMPLE
        points = [(x + dice.gauss(0, spread), y + dice.gauss(0, spread)) for x, y in points]
        pen.line(
            [*points, points[0], points[1]],
            fill=line.level,
            width=round(line.width * SUPERSAMPLE),
            joint="curve",
        )
    return canvas.resize((SIZE, SIZE), Image.Resampling.BOX)


def _steps(ring: list[Point]) -> list[Point]:
    """Divide long edges, so that a hand may sway on them."""
    result = []
    for (x, y), (to_x, to_y) in zip(ring, [*ring[1:], ring[0]], strict=True):
        pieces = max(1, round(math.hypot(to_x - x, to_y - y) / 0.06))
        result += [
            (x + (to_x - x) * k / pieces, y + (to_y - y) * k / pieces) for k in range(pieces)
        ]
    return result[:: 1 if len(result) < 60 else 2]
