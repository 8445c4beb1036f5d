"""The world of the bundled model: what there is to draw, and what is kept out of training.

Attributes, the pairs held out for the report, and random scenes with their looks. No pixels
(`training.drawing`), sentences (`training.captions`) or networks here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import torch
from torch import Tensor

Rgb: TypeAlias = tuple[int, int, int]

SHAPES: Final = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS: Final[dict[str, Rgb]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 60, 190),
    "orange": (245, 140, 30),
    "cyan": (50, 200, 210),
    "white": (240, 240, 240),
}
FILLS: Final = ("solid", "striped")
BACKGROUNDS: Final[dict[str, Rgb]] = {
    "black": (15, 15, 15),
    "gray": (120, 120, 120),
    "navy": (20, 25, 80),
    "pink": (250, 180, 200),
    "brown": (100, 60, 30),
    "teal": (10, 100, 100),
}
COLOUR_NAMES: Final = tuple(COLOURS)
BACKGROUND_NAMES: Final = tuple(BACKGROUNDS)

#: Never drawn in any stage of training: (colour, shape).
HELD_OUT: Final = (
    ("cyan", "star"),
    ("red", "ring"),
    ("yellow", "cross"),
    ("purple", "triangle"),
    ("orange", "square"),
    ("white", "circle"),
)
MIN_RADIUS: Final = 0.2
MAX_RADIUS: Final = 0.38
#: The same for image prompts and control maps, which other programs and people draw.
WIDE_MIN_RADIUS: Final = 0.15
WIDE_MAX_RADIUS: Final = 0.45
#: Share of its radius by which an object may leave the picture there.
OVER_BORDER: Final = 0.15
#: A stripe is the object's colour, or the colour times this.
STRIPE_SHADE: Final = 0.35
#: Width of one diagonal band, in parts of the picture's side.
STRIPE_WIDTH: Final = 3 / 32
STRIPE_ANGLE: Final = math.pi / 4


@dataclass(frozen=True)
class Looks:
    """How pictures differ that show the same attributes: `(n, k)` float each.

    `stripes`: direction across the bands in radians, offset and width in parts of the side, and the
    shade of a dark band. `paint` and `ground`: what is added to the object's and the background's
    colour a channel, 0 to 255. `light`: brightness as a factor, and its change over the picture's
    width and height. `proportion`: -1 to 1, from the thinnest to the fullest star, ring or cross.
    `warp`: stretch, shear and two perspective terms. `wobble`: of the outline, amplitude in
    parts of the side, two wave numbers and two phases.
    """

    stripes: Tensor
    paint: Tensor
    ground: Tensor
    light: Tensor
    proportion: Tensor
    warp: Tensor
    wobble: Tensor


def looks(n: int, generator: torch.Generator) -> Looks:
    """Choose looks at random."""

    def between(low: float, high: float, columns: int) -> Tensor:
        return low + (high - low) * torch.rand(n, columns, generator=generator)

    wobble = torch.cat(
        [between(0, 0.012, 1) * (between(0, 1, 1) < 0.3), between(2, 6, 2), between(0, 6.3, 2)],
        dim=1,
    )
    return Looks(
        stripes=torch.cat(
            [
                between(0, math.pi, 1),
                between(0, 1, 1),
                between(0.055, 0.135, 1),
                between(0.22, 0.5, 1),
            ],
            dim=1,
        ),
        paint=between(-16, 16, 3),
        ground=between(-16, 16, 3),
        light=torch.cat([between(0.75, 1.15, 1), between(-0.12, 0.12, 2)], dim=1),
        proportion=between(-1, 1, 1),
        warp=between(-1, 1, 4) * torch.tensor([0.1, 0.08, 0.16, 0.16]),
        wobble=wobble,
    )


@dataclass(frozen=True)
class Scenes:
    """A batch of pictures still to be drawn.

    `shape`, `colour`, `fill` and `background` are indices into the names above, `(n,)`, long.
    `x`, `y` (the object's centre) and `radius` are parts of the side, `angle` is in radians; all
    `(n,)`, float. Without `looks` every picture is drawn in the one clean way that the UNet paints.
    """

    shape: Tensor
    colour: Tensor
    fill: Tensor
    background: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor
    angle: Tensor
    looks: Looks | None = None

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, rows: Tensor | slice) -> Scenes:
        """Return the scenes of `rows`, an index tensor or a slice."""
        chosen = {name: value[rows] for name, value in vars(self).items() if name != "looks"}
        if self.looks is None:
            return Scenes(**chosen)
        parts = {name: value[rows] for name, value in vars(self.looks).items()}
        return Scenes(**chosen, looks=Looks(**parts))

    def combination(self) -> Tensor:
        """Return one number for shape, colour, fill and background together, `(n,)`."""
        return combination(self.shape, self.colour, self.fill, self.background)


def shapes_only(scenes: Scenes) -> Scenes:
    """Keep proportions and warp; stripes, colours and light are as where there are no looks.

    Scenes without looks get looks that change nothing.
    """
    n = len(scenes)
    proportion, warp = torch.zeros(n, 1), torch.zeros(n, 4)
    if scenes.looks is not None:
        proportion, warp = scenes.looks.proportion, scenes.looks.warp
    clean = Looks(
        stripes=torch.tensor([STRIPE_ANGLE, 0.0, STRIPE_WIDTH, STRIPE_SHADE]).repeat(n, 1),
        paint=torch.zeros(n, 3),
        ground=torch.zeros(n, 3),
        light=torch.tensor([1.0, 0.0, 0.0]).repeat(n, 1),
        proportion=proportion,
        warp=warp,
        wobble=torch.zeros(n, 5),
    )
    return replace(scenes, looks=clean)


def joined(first: Scenes, second: Scenes) -> Scenes:
    """Put two batches one behind the other; both have looks, or neither has."""

    def join(one: object, other: object) -> dict[str, Tensor]:
        parts = vars(other)
        return {
            name: torch.cat([value, parts[name]])
            for name, value in vars(one).items()
            if name != "looks"
        }

    looks = first.looks and second.looks and Looks(**join(first.looks, second.looks))
    return Scenes(**join(first, second), looks=looks)


def combination(shape: Tensor, colour: Tensor, fill: Tensor, background: Tensor) -> Tensor:
    """Give each choice of the four attributes a number, 0 to 575."""
    number = (shape * len(COLOURS) + colour) * len(FILLS) + fill
    return number * len(BACKGROUNDS) + background


def is_held_out(colour: Tensor, shape: Tensor) -> Tensor:
    """Tell which (colour, shape) pairs are kept from training, `(n,)`, bool."""
    held = torch.zeros(len(COLOURS), len(SHAPES), dtype=torch.bool)
    for colour_name, shape_name in HELD_OUT:
        held[COLOUR_NAMES.index(colour_name), SHAPES.index(shape_name)] = True
    return held[colour, shape]


def attributes(*, held_out: bool) -> Tensor:
    """List every (shape, colour, fill, background) of training, or of the held-out pairs.

    Shape `(504, 4)` for training, `(72, 4)` for the held-out pairs.
    """
    every = torch.cartesian_prod(
        torch.arange(len(SHAPES)),
        torch.arange(len(COLOURS)),
        torch.arange(len(FILLS)),
        torch.arange(len(BACKGROUNDS)),
    )
    return every[is_held_out(every[:, 1], every[:, 0]) == held_out]


def place(chosen: Tensor, generator: torch.Generator, *, wide: bool = False) -> Scenes:
    """Give each row of `chosen`, `(n, 4)` as in `attributes`, a random place, size and rotation.

    The object lies within the picture. `wide` chooses looks as well, from a wider range of sizes,
    and lets objects touch the border and leave it by a little.
    """
    n = len(chosen)
    smallest, largest = (WIDE_MIN_RADIUS, WIDE_MAX_RADIUS) if wide else (MIN_RADIUS, MAX_RADIUS)
    radius = smallest + (largest - smallest) * torch.rand(n, generator=generator)
    margin = radius * (1 - OVER_BORDER) if wide else radius
    x = margin + (1 - 2 * margin) * torch.rand(n, generator=generator)
    y = margin + (1 - 2 * margin) * torch.rand(n, generator=generator)
    angle = 2 * torch.pi * torch.rand(n, generator=generator)
    shape, colour, fill, background = chosen.unbind(1)
    chosen_looks = looks(n, generator) if wide else None
    return Scenes(shape, colour, fill, background, x, y, radius, angle, chosen_looks)


def sample(
    n: int, generator: torch.Generator, *, held_out: bool = False, wide: bool = False
) -> Scenes:
    """Draw `n` random scenes: of the training pairs, or of the held-out ones."""
    table = attributes(held_out=held_out)
    chosen = table[torch.randint(len(table), (n,), generator=generator)]
    return place(chosen, generator, wide=wide)
