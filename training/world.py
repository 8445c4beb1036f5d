"""The world of the bundled model: what there is to draw, and what is kept out of training.

Attributes, the pairs held out for the report, and random scenes. This file knows nothing of
pixels (`training.drawing`), sentences (`training.captions`) or networks.
"""

from __future__ import annotations

from dataclasses import dataclass
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
#: A stripe is the object's colour, or the colour times this.
STRIPE_SHADE: Final = 0.35
#: Width of one diagonal band, in parts of the picture's side.
STRIPE_WIDTH: Final = 3 / 32


@dataclass(frozen=True)
class Scenes:
    """A batch of pictures still to be drawn.

    `shape`, `colour`, `fill` and `background` are indices into the names above, `(n,)`, long.
    `x`, `y` (the object's centre) and `radius` are parts of the side, `angle` is in radians; all
    `(n,)`, float.
    """

    shape: Tensor
    colour: Tensor
    fill: Tensor
    background: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor
    angle: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, rows: Tensor | slice) -> Scenes:
        """Return the scenes of `rows`, an index tensor or a slice."""
        return Scenes(**{name: value[rows] for name, value in vars(self).items()})

    def combination(self) -> Tensor:
        """Return one number for shape, colour, fill and background together, `(n,)`."""
        return combination(self.shape, self.colour, self.fill, self.background)


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


def place(chosen: Tensor, generator: torch.Generator) -> Scenes:
    """Give each row of `chosen`, `(n, 4)` as in `attributes`, a random place, size and rotation.

    The object always lies within the picture.
    """
    n = len(chosen)
    radius = MIN_RADIUS + (MAX_RADIUS - MIN_RADIUS) * torch.rand(n, generator=generator)
    x = radius + (1 - 2 * radius) * torch.rand(n, generator=generator)
    y = radius + (1 - 2 * radius) * torch.rand(n, generator=generator)
    angle = 2 * torch.pi * torch.rand(n, generator=generator)
    shape, colour, fill, background = chosen.unbind(1)
    return Scenes(shape, colour, fill, background, x, y, radius, angle)


def sample(n: int, generator: torch.Generator, *, held_out: bool = False) -> Scenes:
    """Draw `n` random scenes: of the training pairs, or of the held-out ones."""
    table = attributes(held_out=held_out)
    return place(table[torch.randint(len(table), (n,), generator=generator)], generator)
