"""The evaluation's figures: what the judge reads off the paintings, beside what was asked for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from training import drawing, independent, judge, layout
from training.cases import pictures
from training.judge import Verdict
from training.paintings import Paintings
from training.world import Scenes

NAMES: Final = ("shape", "colour", "fill", "background")
SCALES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
#: Largest drop between neighbouring scales that still counts as growing: three points.
SLACK: Final = 0.03
OWN: Final = "own renderer"
OTHER: Final = "independent renderer"


@dataclass(frozen=True)
class Row:
    """One line of the table. `at_least` is what is wanted, or None where it is only reported."""

    test: str
    measure: str
    value: float
    at_least: float | None = None

    @property
    def passed(self) -> bool:
        """Tell whether the figure reaches what is wanted."""
        return self.at_least is None or self.value >= self.at_least


def evaluate(paintings: Paintings) -> list[Row]:
    """Run every test and return the table."""
    rows = _text(paintings)
    rows += _image(paintings)
    rows += _held_out(paintings)
    rows += _both(paintings)
    rows += _maps(paintings)
    rows += _inpainting(paintings)
    rows += _plus(paintings)
    rows += _scales(paintings)
    rows += _fast(paintings)
    rows += _looks(paintings)
    return rows + _sizes(paintings) + _alignment(paintings)


def _right(painted: Tensor, wanted: Tensor) -> Tensor:
    """Tell which attributes, `(n, 4)` in the order of `NAMES`, came out as `wanted`, bool."""
    return _read(judge.judge(painted)) == wanted


def _read(verdict: Verdict) -> Tensor:
    return torch.stack([getattr(verdict, name) for name in NAMES], dim=1)


def _of(scenes: Scenes) -> Tensor:
    return torch.stack([getattr(scenes, name) for name in NAMES], dim=1)


def _share(hits: Tensor) -> float:
    return hits.float().mean().item()


def _attributes(test: str, hits: Tensor, every: float | None, each: float | None) -> list[Row]:
    return [
        Row(test, "all four right", _share(hits.all(1)), every),
        *(Row(test, f"{name} right", _share(hits[:, i]), each) for i, name in enumerate(NAMES)),
    ]


def _text(paintings: Paintings) -> list[Row]:
    hits = _right(paintings.text(), _of(paintings.cases.prompts))
    return _attributes("text only", hits, 0.95, 0.95)


def _image(paintings: Paintings) -> list[Row]:
    own = _right(paintings.image(), _of(paintings.cases.prompts))
    rows = _attributes(f"image prompt only, {OWN}", own, 0.92, 0.95)
    wanted = independent.attributes(paintings.others)
    for variant in independent.VARIANTS:
        hits = _right(paintings.variant(variant), wanted)
        test = f"image prompt only, {OTHER}, {variant.name}"
        plain = variant is independent.PLAIN
        rows += _attributes(test, hits, 0.92 if plain else 0.85, 0.95 if plain else None)
    return rows


def _held_out(paintings: Paintings) -> list[Row]:
    wanted = {
        OWN: (paintings.held_out(), _of(paintings.cases.held_out)),
        OTHER: (paintings.others_held(), independent.attributes(paintings.others_held_out)),
    }
    return [
        Row(
            f"never trained on, {name}",
            "colour and shape right",
            _share(_right(painted, attributes)[:, :2].all(1)),
            0.85,
        )
        for name, (painted, attributes) in wanted.items()
    ]


def _both(paintings: Paintings) -> list[Row]:
    wanted = independent.attributes(paintings.others)
    wanted[:, 3] = paintings.other_backgrounds()
    hits = _right(paintings.both(), wanted)
    return [
        Row("image + text", "object and background right", _share(hits.all(1)), 0.9),
        Row("image + text", "object from the image", _share(hits[:, :3].all(1))),
        Row("image + text", "background from the text", _share(hits[:, 3])),
    ]


def _maps(paintings: Paintings) -> list[Row]:
    outlines = paintings.cases.outlines
    size = paintings.prompts.shape[-1]
    own = drawing.mask(outlines, size) > 0.5
    rows = _mapped(f"image + outline, {OWN}", paintings.control(), _of(outlines), own)
    mapped = paintings.mapped()
    wanted, area = independent.attributes(mapped), independent.areas(mapped)
    for line in independent.LINES:
        rows += _mapped(f"image + {line.name}, {OTHER}", paintings.line(line), wanted, area)
    rows += _mapped(f"image + area, {OTHER}", paintings.area(), wanted, area)
    rows += _mapped(f"image + outline by T2I-Adapter, {OTHER}", paintings.sketch(), wanted, area)
    style = paintings.line(independent.LINES[0], style=True)
    hits = _right(style, wanted)
    test = "style only + outline"
    return [
        *rows,
        Row(test, "colour and fill from the image", _share(hits[:, 1:3].all(1)), 0.85),
        Row(test, "background from the image", _share(hits[:, 3])),
    ]


def _mapped(test: str, painted: Tensor, wanted: Tensor, area: Tensor) -> list[Row]:
    verdict = judge.judge(painted)
    hits = _read(verdict) == wanted
    overlap = judge.overlap(verdict.mask, area).mean().item()
    return [
        Row(test, "colour and fill from the image", _share(hits[:, 1:3].all(1)), 0.92),
        Row(test, "mean overlap with the map's area", overlap, 0.85),
    ]


def _inpainting(paintings: Paintings) -> list[Row]:
    start, hidden = paintings.halves()
    painted = paintings.inpainted()
    outside = (painted == start) | hidden[:, None]
    hits = _right(painted, independent.attributes(paintings.others))
    return [
        Row("inpainting a half", "pixels outside unchanged", _share(outside), 1.0),
        Row("inpainting a half", "all four right", _share(hits.all(1)), 0.85),
    ]


def _plus(paintings: Paintings) -> list[Row]:
    own, other = _of(paintings.cases.prompts), independent.attributes(paintings.others)
    any_stripes = independent.VARIANTS[-1]
    rows, difference = [], 0.0
    for name, base, plus, wanted in (
        (OWN, paintings.image(), paintings.image(adapter=layout.PLUS_FILE), own),
        (
            f"{OTHER}, {any_stripes.name}",
            paintings.variant(any_stripes),
            paintings.variant(any_stripes, layout.PLUS_FILE),
            other,
        ),
    ):
        hits = _right(plus, wanted)
        rows.append(Row(f"Plus, {name}", "all four right", _share(hits.all(1))))
        difference += (_share(hits) - _share(_right(base, wanted))) / 2
    return [*rows, Row("Plus against base", "agreement, Plus minus base", difference, 0)]


def _scales(paintings: Paintings) -> list[Row]:
    wanted = _of(paintings.cases.prompts)
    zero = 1 - paintings.zero_difference()
    agreement = [_share(_right(paintings.image(scale), wanted)) for scale in SCALES]
    steps = [after - before for before, after in itertools.pairwise(agreement)]
    return [
        Row("scale 0", "1 - largest difference", zero, 1 - 1e-5),
        *(
            Row("scale 0 to 1", f"agreement at {scale}", value)
            for scale, value in zip(SCALES, agreement, strict=True)
        ),
        Row("scale 0 to 1", "smallest step", min(steps), -SLACK),
    ]


def _fast(paintings: Paintings) -> list[Row]:
    """Judge four steps without guidance."""
    wanted = {
        "text only": _of(paintings.cases.prompts),
        "image prompt only": independent.attributes(paintings.others),
    }
    return [
        Row(
            f"four steps, {name}",
            "all four right",
            _share(_right(painted, wanted[name]).all(1)),
            0.88,
        )
        for name, painted in paintings.fast().items()
    ]


def _looks(paintings: Paintings) -> list[Row]:
    """Judge the LoRAs: whether the look is there, also without them, and what it leaves right."""
    wanted = {
        "text only": (_of(paintings.cases.prompts), paintings.text()),
        "image prompt only": (
            independent.attributes(paintings.others),
            paintings.variant(independent.PLAIN),
        ),
    }
    rows = []
    for look, seen in judge.LOOKS.items():
        for name, painted in paintings.look(look).items():
            attributes, without = wanted[name]
            hits = _right(painted, attributes)
            test = f"LoRA {look}, {name}"
            rows += [
                Row(test, "look there", _share(seen(painted))),
                Row(test, "look there without the LoRA", _share(seen(without))),
                Row(test, "colour and background right", _share(hits[:, [1, 3]].all(1))),
            ]
    return rows


def _sizes(paintings: Paintings) -> list[Row]:
    """Count the adapters' parameters and their share of UNet and adapter together."""
    paintings.painter.load(None)
    unet = sum(p.numel() for p in paintings.painter.plain.unet.parameters())
    rows = []
    for name in (layout.BASE_FILE, layout.PLUS_FILE):
        weights = load_file(paintings.directory / layout.ADAPTERS / name)
        size = sum(weight.numel() for weight in weights.values())
        rows.append(Row(f"size of {name}", "parameters", size))
        rows.append(Row(f"size of {name}", "share of UNet + adapter", size / (unet + size)))
    return rows


def _alignment(paintings: Paintings) -> list[Row]:
    """Return the paper's table 1 in small: mean cosines with image prompts and captions."""
    image = paintings.painter.image_embeddings(paintings.prompts)
    text = paintings.painter.text_embeddings(paintings.captions)
    other = torch.roll(torch.arange(len(image)), 1)
    rows = []
    painted = {
        "real picture": pictures(paintings.cases.prompts),
        "text only": paintings.text(),
        "image prompt": paintings.image(),
    }
    for name, made in painted.items():
        seen = paintings.painter.image_embeddings(made)
        for measure, against in (("CLIP-I", image), ("CLIP-T", text)):
            for kind, pairs in (("", against), (", shuffled", against[other])):
                value = (seen * pairs).sum(1).mean().item()
                rows.append(Row(f"alignment: {name}", measure + kind, value))
    return rows


def table(rows: list[Row]) -> str:
    """Write the rows as a markdown table."""
    lines = ["| test | measure | figure | at least | |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        wanted = "" if row.at_least is None else f"{row.at_least:g}"
        mark = "" if row.at_least is None else ("yes" if row.passed else "**short**")
        figure = f"{row.value:.0f}" if row.measure == "parameters" else f"{row.value:.3f}"
        lines.append(f"| {row.test} | {row.measure} | {figure} | {wanted} | {mark} |")
    return "\n".join(lines)
