"""Contact sheets for docs/: what came out beside what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from training import captions, drawing, independent, judge, layout
from training.independent import LINES, VARIANTS
from training.painter import Order
from training.paintings import Paintings
from training.world import BACKGROUND_NAMES

GAP: Final = 4
LABEL: Final = 16
SCALES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def sheet(rows: list[Tensor], labels: list[str], path: Path) -> None:
    """Lay rows of uint8 pictures `(n, 3, size, size)` out below each other, each with a label."""
    size = rows[0].shape[-1]
    cell = size + GAP
    width = cell * max(len(row) for row in rows) + GAP
    canvas = Image.new("RGB", (width, len(rows) * (cell + LABEL) + GAP), "white")
    pen = ImageDraw.Draw(canvas)
    for down, (row, label) in enumerate(zip(rows, labels, strict=True)):
        top = GAP + down * (cell + LABEL)
        pen.text((GAP, top), label, fill="black")
        for across, picture in enumerate(row):
            tile = Image.fromarray(picture.permute(1, 2, 0).numpy())
            canvas.paste(tile, (GAP + across * cell, top + LABEL))
    canvas.quantize(128).save(path, optimize=True)


def draw_all(paintings: Paintings, docs: Path) -> None:
    """Draw the evaluation's first cases, whatever they are: nothing is picked."""
    n = 8
    given = paintings.cases
    sheet(
        [paintings.text()[:n]],
        ["text only: " + "; ".join(text.split(" ", 1)[1] for text in paintings.captions[:3])],
        docs / "sheet-text.png",
    )
    sheet(
        [
            paintings.prompts[:n],
            paintings.image()[:n],
            paintings.image(adapter=layout.PLUS_FILE)[:n],
        ],
        ["image prompts", "painted, no text", "painted by Plus, no text"],
        docs / "sheet-image.png",
    )
    rows, labels = [], []
    for variant in VARIANTS:
        if variant.size == independent.SIZE:
            rows += [
                independent.draw(paintings.others[:n], variant),
                paintings.variant(variant)[:n],
            ]
            labels += [f"independent renderer, {variant.name}", "painted, no text"]
    sheet(rows, labels, docs / "sheet-independent.png")
    held = drawing.draw(given.held_out[:n], paintings.prompts.shape[-1])
    sheet(
        [held, paintings.held_out()[:n]],
        ["image prompts of pairs never trained on", "painted, no text"],
        docs / "sheet-held-out.png",
    )
    sheet(
        [paintings.prompts[:n], *(paintings.image(scale)[:n] for scale in SCALES)],
        ["image prompts", *(f"scale {scale}" for scale in SCALES)],
        docs / "sheet-scales.png",
    )
    _image_by_text(paintings, docs / "sheet-image-text.png")
    _maps(paintings, docs / "sheet-control.png", n)
    _loras(paintings, docs / "sheet-loras.png", n)


def _maps(paintings: Paintings, path: Path, n: int) -> None:
    rows, labels = [independent.draw(paintings.others[:n])], ["image prompts"]
    for line in LINES:
        drawn = independent.outlines(paintings.mapped()[:n], line)
        rows += [(drawn * 255).to(torch.uint8), paintings.line(line)[:n]]
        labels += [line.name, "painted, no text"]
    areas = independent.areas(paintings.mapped()[:n])[:, None].expand(-1, 3, -1, -1)
    rows += [
        paintings.line(LINES[0], style=True)[:n],
        paintings.sketch()[:n],
        255 * areas.to(torch.uint8),
        paintings.area()[:n],
    ]
    labels += [
        "the first maps, style only",
        "the first maps, by the T2I-Adapter",
        "areas",
        "painted, no text",
    ]
    sheet(rows, labels, path)


def _loras(paintings: Paintings, path: Path, n: int) -> None:
    rows, labels = [independent.draw(paintings.others[:n])], ["image prompts"]
    for look in judge.LOOKS:
        painted = paintings.look(look)
        rows += [painted["image prompt only"][:n], painted["text only"][:n]]
        labels += [f"painted with the LoRA {look}", f"texts of sheet-text with the LoRA {look}"]
    sheet(rows, labels, path)


def _image_by_text(paintings: Paintings, path: Path) -> None:
    """Paint a grid: each of four image prompts beside each background's text."""
    prompts = paintings.prompts[:4]
    texts = [captions.setting(background) for background in range(len(BACKGROUND_NAMES))]
    order = Order(
        texts * len(prompts), first_seed=5000, image=prompts.repeat_interleave(len(texts), dim=0)
    )
    painted = paintings.paint("grid", order).unflatten(0, (len(prompts), len(texts)))
    rows = [torch.cat([prompt[None], row]) for prompt, row in zip(prompts, painted, strict=True)]
    label = "image prompt, then with: " + ", ".join(texts)
    sheet(rows, [label, *[""] * (len(rows) - 1)], path)
