# ruff: noqa: INP001  a script beside its pictures, no package
"""Draws the demo's inputs anew: `python -m examples.draw`. Needs torch; the pictures do not."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw

from training import drawing
from training.world import BACKGROUND_NAMES, COLOUR_NAMES, FILLS, SHAPES, Scenes

FOLDER = Path(__file__).parent
SIDE = 256


def scene(
    shape: str,
    colour: str,
    fill: str,
    background: str,
    *,
    angle: float = 0.3,
    place: tuple[float, float, float] = (0.5, 0.5, 0.34),
) -> Scenes:
    """One object. `place` is its middle and its radius, in parts of the side."""
    indices = (
        SHAPES.index(shape),
        COLOUR_NAMES.index(colour),
        FILLS.index(fill),
        BACKGROUND_NAMES.index(background),
    )
    places = (*place, angle)
    return Scenes(*(torch.tensor([index]) for index in indices), *map(torch.tensor, zip(places)))


def save(pixels: torch.Tensor, name: str) -> None:
    """Write the only picture of `pixels`, `(1, 3, side, side)`, uint8."""
    Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy()).save(
        FOLDER / name, optimize=True
    )


def mask(name: str, *, disc: bool) -> None:
    """Write a mask that is white on a disc in the middle, or on the left half."""
    drawn = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(drawn)
    if disc:
        pen.ellipse((0.12 * SIDE, 0.12 * SIDE, 0.88 * SIDE, 0.88 * SIDE), fill=255)
    else:
        pen.rectangle((0, 0, SIDE // 2 - 1, SIDE), fill=255)
    drawn.save(FOLDER / name, optimize=True)


if __name__ == "__main__":
    save(drawing.draw(scene("star", "red", "solid", "navy"), SIDE), "red-star.png")
    save(drawing.draw(scene("ring", "blue", "striped", "gray"), SIDE), "blue-ring.png")
    save(drawing.draw(scene("square", "green", "solid", "pink"), SIDE), "green-square.png")
    triangle = scene("triangle", "white", "solid", "black", angle=0.8)
    save(drawing.outline(triangle, SIDE), "triangle-outline.png")
    save(drawing.draw(scene("cross", "yellow", "solid", "teal"), SIDE), "yellow-cross.png")
    star = drawing.outline(scene("star", "white", "solid", "black", angle=0.2), SIDE)
    for name, hidden in (("left", slice(SIDE // 2, SIDE)), ("right", slice(SIDE // 2))):
        half = star.clone()
        half[..., hidden] = 0
        save(half, f"{name}-outline.png")
    mask("disc-mask.png", disc=True)
    mask("left-mask.png", disc=False)
