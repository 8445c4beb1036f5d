"""Measure the bundled model: `python -m training.evaluate`, as `make eval` does.

Pictures are judged by their pixels (`training.judge`). Prints a table, writes it to docs/ as
evaluation.md and evaluation.json, and draws the contact sheets there. What has been painted is kept
in work/ under the model's fingerprint, so that a broken run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from training import captions, drawing, judge, layout, sheets
from training.cases import NUMBER, Cases, cases, full_captions, pictures
from training.judge import Verdict
from training.painter import GUIDANCE, STEPS, Order, Painter
from training.world import Scenes

NAMES: Final = ("shape", "colour", "fill", "background")
SCALES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
#: Largest drop between neighbouring scales that still counts as growing: three points.
SLACK: Final = 0.03


@dataclass(frozen=True)
class Row:
    """One line of the table. `at_least` is the issue's target, or None where it is reported."""

    test: str
    measure: str
    value: float
    at_least: float | None

    @property
    def passed(self) -> bool:
        """Tell whether the figure reaches its target."""
        return self.at_least is None or self.value >= self.at_least


class Evaluation:
    """All tests of one model folder; each method paints one test's pictures once."""

    def __init__(self, directory: Path, kept: Path, n: int) -> None:
        self._directory = directory
        self._painter = Painter(directory)
        self._kept = kept / f"{fingerprint(directory)}-{n}"
        self._kept.mkdir(parents=True, exist_ok=True)
        self.cases: Cases = cases(n)
        self.prompts = pictures(self.cases.prompts)
        self.captions = full_captions(self.cases.prompts)
        self.settings = [captions.setting(b) for b in self.cases.backgrounds.tolist()]
        self._nothing = [""] * n

    def paint(self, name: str, order: Order, adapter: str = layout.BASE_FILE) -> Tensor:
        """Paint an order once and keep it under `name`."""
        path = self._kept / f"{name}.pt"
        if not path.exists():
            start = time.monotonic()
            torch.save(self._painter.paint(order, adapter), path)
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
        painted: Tensor = torch.load(path, weights_only=True)
        return painted

    def text(self) -> Tensor:
        """Paint full captions without an image."""
        return self.paint("text", Order(self.captions, first_seed=0))

    def image(self, scale: float = 1.0) -> Tensor:
        """Paint image prompts without a text."""
        order = Order(self._nothing, first_seed=1000, image=self.prompts, scale=scale)
        return self.paint(f"image-{scale:.1f}", order)

    def plus(self) -> Tensor:
        """Paint the same with the Plus adapter."""
        order = Order(self._nothing, first_seed=1000, image=self.prompts)
        return self.paint("plus", order, layout.PLUS_FILE)

    def held_out(self) -> Tensor:
        """Paint image prompts of the pairs never trained on."""
        image = pictures(self.cases.held_out)
        return self.paint("held-out", Order(self._nothing, first_seed=2000, image=image))

    def both(self) -> Tensor:
        """Paint image prompts beside a text that names another background."""
        return self.paint("both", Order(self.settings, first_seed=3000, image=self.prompts))

    def control(self) -> Tensor:
        """Paint image prompts into the outline of another shape."""
        outlines = drawing.outline(self.cases.outlines, self.prompts.shape[-1]) / 255
        order = Order(self._nothing, first_seed=4000, image=self.prompts, control=outlines)
        return self.paint("control", order)

    def zero_difference(self) -> float:
        """Return the largest difference of pixels (0 to 1) between scale 0 and no adapter."""
        some = self.captions[:8]
        base = self._painter.paint(Order(some, first_seed=0))
        zero = self._painter.paint(Order(some, first_seed=0, image=self.prompts[:8], scale=0.0))
        return (base.float() - zero.float()).abs().max().item() / 255

    def alignment(self) -> list[Row]:
        """Return the paper's table 1 in small: mean cosines with image prompts and captions."""
        image = self._painter.image_embeddings(self.prompts)
        text = self._painter.text_embeddings(self.captions)
        other = torch.roll(torch.arange(len(image)), 1)
        rows = []
        painted = {
            "real picture": pictures(self.cases.prompts),
            "text only": self.text(),
            "image prompt": self.image(),
            "image + text": self.both(),
        }
        for name, made in painted.items():
            seen = self._painter.image_embeddings(made)
            for measure, against in (("CLIP-I", image), ("CLIP-T", text)):
                for kind, pairs in (("", against), (", shuffled", against[other])):
                    value = (seen * pairs).sum(1).mean().item()
                    rows.append(Row(f"alignment: {name}", measure + kind, value, None))
        return rows

    def sizes(self) -> list[Row]:
        """Count the adapters' parameters and their share of UNet and adapter together."""
        self._painter.load(None)
        unet = sum(p.numel() for p in self._painter.plain.unet.parameters())
        rows = []
        for name in (layout.BASE_FILE, layout.PLUS_FILE):
            weights = load_file(self._directory / layout.ADAPTERS / name)
            size = sum(weight.numel() for weight in weights.values())
            rows.append(Row(f"size of {name}", "parameters", size, None))
            rows.append(
                Row(f"size of {name}", "share of UNet + adapter", size / (unet + size), None)
            )
        return rows


def right(verdict: Verdict, scenes: Scenes) -> dict[str, Tensor]:
    """Tell which attributes came out as in `scenes`, `(n,)` bool each."""
    return {name: getattr(verdict, name) == getattr(scenes, name) for name in NAMES}


def _share(hits: Tensor) -> float:
    return hits.float().mean().item()


def _attributes(test: str, hits: dict[str, Tensor], every: float, each: float) -> list[Row]:
    together = torch.stack(list(hits.values())).all(0)
    return [
        Row(test, "all four right", _share(together), every),
        *(Row(test, f"{name} right", _share(hit), each) for name, hit in hits.items()),
    ]


def evaluate(evaluation: Evaluation) -> list[Row]:
    """Run every test and return the table."""
    given = evaluation.cases
    rows = _attributes("text only", right(judge.judge(evaluation.text()), given.prompts), 0.9, 0.95)
    alone = right(judge.judge(evaluation.image()), given.prompts)
    rows += _attributes("image prompt only", alone, 0.8, 0.9)
    held = right(judge.judge(evaluation.held_out()), given.held_out)
    rows.append(
        Row(
            "never trained on",
            "colour and shape right",
            _share(held["colour"] & held["shape"]),
            0.7,
        )
    )
    rows.append(
        Row("scale 0", "1 - largest difference", 1 - evaluation.zero_difference(), 1 - 1e-5)
    )
    rows += _scales(evaluation, given.prompts)
    both = right(judge.judge(evaluation.both()), given.prompts)
    object_right = both["shape"] & both["colour"] & both["fill"]
    background = judge.judge(evaluation.both()).background == given.backgrounds
    rows += [
        Row("image + text", "object and background right", _share(object_right & background), 0.7),
        Row("image + text", "object from the image", _share(object_right), None),
        Row("image + text", "background from the text", _share(background), None),
    ]
    verdict = judge.judge(evaluation.control())
    painted = right(verdict, given.outlines)
    area = drawing.mask(given.outlines, evaluation.prompts.shape[-1]) > 0.5
    rows += [
        Row(
            "image + outline",
            "colour and fill from the image",
            _share(painted["colour"] & painted["fill"]),
            0.8,
        ),
        Row(
            "image + outline",
            "mean overlap with the outline's area",
            judge.overlap(verdict.mask, area).mean().item(),
            0.8,
        ),
    ]
    plus = right(judge.judge(evaluation.plus()), given.prompts)
    base_agreement, plus_agreement = _agreement(alone), _agreement(plus)
    rows += [
        Row(
            "Plus, image prompt only",
            "all four right",
            _share(torch.stack(list(plus.values())).all(0)),
            None,
        ),
        Row("Plus against base", "agreement, Plus minus base", plus_agreement - base_agreement, 0),
    ]
    return rows + evaluation.sizes() + evaluation.alignment()


def _agreement(hits: dict[str, Tensor]) -> float:
    return torch.stack(list(hits.values())).float().mean().item()


def _scales(evaluation: Evaluation, scenes: Scenes) -> list[Row]:
    agreement = [
        _agreement(right(judge.judge(evaluation.image(scale)), scenes)) for scale in SCALES
    ]
    rows = [
        Row("scale 0 to 1", f"agreement at {scale}", value, None)
        for scale, value in zip(SCALES, agreement, strict=True)
    ]
    steps = [after - before for before, after in itertools.pairwise(agreement)]
    return [*rows, Row("scale 0 to 1", "smallest step", min(steps), -SLACK)]


def fingerprint(directory: Path) -> str:
    """Hash all weights of a model folder."""
    digest = hashlib.sha256(f"{STEPS} {GUIDANCE}".encode())
    for path in sorted(directory.rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def table(rows: list[Row]) -> str:
    """Write the rows as a markdown table."""
    lines = ["| test | measure | figure | at least | |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        wanted = "" if row.at_least is None else f"{row.at_least:g}"
        mark = "" if row.at_least is None else ("yes" if row.passed else "**short**")
        figure = f"{row.value:.0f}" if row.measure == "parameters" else f"{row.value:.3f}"
        lines.append(f"| {row.test} | {row.measure} | {figure} | {wanted} | {mark} |")
    return "\n".join(lines)


def main() -> None:
    """Evaluate the model folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("models/shapes"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--kept", type=Path, default=Path("work/evaluation"))
    parser.add_argument("--cases", type=int, default=NUMBER)
    given = parser.parse_args()
    evaluation = Evaluation(given.directory, given.kept, given.cases)
    rows = evaluate(evaluation)
    heading = (
        f"Model {fingerprint(given.directory)}, {given.cases} cases a test, DPM-Solver++ "
        f"{STEPS} steps, guidance {GUIDANCE:g}.\n\n"
    )
    print(table(rows))
    (given.docs / "evaluation.md").write_text("# Evaluation\n\n" + heading + table(rows) + "\n")
    content = json.dumps([asdict(row) for row in rows], indent=2)
    (given.docs / "evaluation.json").write_text(content + "\n")
    sheets.draw_all(evaluation, given.docs)


if __name__ == "__main__":
    main()
