"""What the evaluation paints: each test's pictures once, kept under the model's fingerprint."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from training import captions, drawing, independent, layout
from training.cases import Cases, cases, full_captions, pictures
from training.independent import PLAIN, Line, Picture, Variant
from training.loop import autocast
from training.painter import GUIDANCE, STEPS, STYLE_ONLY, Order, Painter
from training.world import BACKGROUND_NAMES, SHAPES

#: Cases of the independent renderer: of all pairs, of the held-out pairs, of the maps.
SEEDS: Final = (314, 315, 316)


def fingerprint(directory: Path) -> str:
    """Hash all weights of a model folder."""
    digest = hashlib.sha256(f"{STEPS} {GUIDANCE}".encode())
    for path in sorted(directory.rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Paintings:
    """All pictures of the evaluation; each method paints one test's once.

    `prompts` are drawn by the renderer of the training, `others` by the independent one.
    """

    def __init__(self, directory: Path, kept: Path, n: int) -> None:
        self.directory = directory
        self.painter = Painter(directory)
        self._kept = kept / f"{fingerprint(directory)}-{n}"
        self._kept.mkdir(parents=True, exist_ok=True)
        self.cases: Cases = cases(n)
        self.prompts = pictures(self.cases.prompts)
        self.captions = full_captions(self.cases.prompts)
        self.others = independent.pictures(n, SEEDS[0])
        self.others_held_out = independent.pictures(n, SEEDS[1], held_out=True)
        self.settings = [captions.setting(b) for b in self.cases.backgrounds.tolist()]
        self._nothing = [""] * n

    def paint(
        self,
        name: str,
        order: Order,
        adapter: str = layout.BASE_FILE,
        painter: Painter | None = None,
    ) -> Tensor:
        """Paint an order once, in bfloat16 where the CPU multiplies it; keep it under `name`."""
        path = self._kept / f"{name.replace(' ', '-')}.pt"
        if not path.exists():
            start = time.monotonic()
            with autocast():
                painted = (painter or self.painter).paint(order, adapter)
            torch.save(painted, path)
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
        result: Tensor = torch.load(path, weights_only=True)
        return result

    def text(self) -> Tensor:
        """Paint full captions without an image."""
        return self.paint("text", Order(self.captions, first_seed=0))

    def image(self, scale: float = 1.0, adapter: str = layout.BASE_FILE) -> Tensor:
        """Paint image prompts of the training's renderer without a text."""
        order = Order(self._nothing, first_seed=1000, image=self.prompts, scale=scale)
        return self.paint(f"image-{scale:.1f}-{adapter}", order, adapter)

    def fast(self) -> dict[str, Tensor]:
        """Paint full captions, and independent image prompts, in a few steps."""
        painter = Painter(self.directory, layout.FAST_LORA)
        image = independent.draw(self.others)
        return {
            "text only": self.paint("fast text", Order(self.captions, 0), painter=painter),
            "image prompt only": self.paint(
                "fast image", Order(self._nothing, 1000, image=image), painter=painter
            ),
        }

    def look(self, look: str) -> dict[str, Tensor]:
        """Paint full captions, and independent image prompts, with the LoRA of a look."""
        painter = Painter(self.directory, layout.LOOKS[look])
        image = independent.draw(self.others)
        return {
            "text only": self.paint(f"{look} text", Order(self.captions, 0), painter=painter),
            "image prompt only": self.paint(
                f"{look} image", Order(self._nothing, 1000, image=image), painter=painter
            ),
        }

    def variant(self, variant: Variant, adapter: str = layout.BASE_FILE) -> Tensor:
        """Paint independent image prompts of a variant without a text."""
        image = independent.draw(self.others, variant)
        order = Order(self._nothing, first_seed=1000, image=image)
        return self.paint(f"independent {variant.name}-{adapter}", order, adapter)

    def held_out(self) -> Tensor:
        """Paint image prompts of the pairs never trained on, of the training's renderer."""
        image = pictures(self.cases.held_out)
        return self.paint("held-out", Order(self._nothing, first_seed=2000, image=image))

    def others_held(self, variant: Variant = PLAIN) -> Tensor:
        """Paint independent image prompts of the pairs never trained on."""
        image = independent.draw(self.others_held_out, variant)
        order = Order(self._nothing, first_seed=2000, image=image)
        return self.paint(f"independent held-out {variant.name}", order)

    def both(self) -> Tensor:
        """Paint independent image prompts beside a text that names another background."""
        image = independent.draw(self.others)
        return self.paint("both", Order(self.other_settings(), first_seed=3000, image=image))

    def other_settings(self) -> list[str]:
        """Return texts that name another background than the independent prompts'."""
        return [captions.setting(background) for background in self.other_backgrounds().tolist()]

    def other_backgrounds(self) -> Tensor:
        """Choose another background for each independent image prompt, `(n,)`."""
        own = independent.attributes(self.others)[:, 3]
        step = self.cases.backgrounds - self.cases.prompts.background
        return (own + step) % len(BACKGROUND_NAMES)

    def mapped(self) -> list[Picture]:
        """Choose the control maps: the independent prompts' paint on other shapes elsewhere."""
        places = independent.pictures(len(self.others), SEEDS[2])
        return [
            replace(
                place,
                shape=(own.shape + 1 + number % (len(SHAPES) - 1)) % len(SHAPES),
                colour=own.colour,
                striped=own.striped,
                background=own.background,
            )
            for number, (own, place) in enumerate(zip(self.others, places, strict=True))
        ]

    def control(self) -> Tensor:
        """Paint image prompts of the training's renderer into its outline of another shape."""
        outlines = drawing.outline(self.cases.outlines, self.prompts.shape[-1]) / 255
        order = Order(self._nothing, first_seed=4000, image=self.prompts, control=outlines)
        return self.paint("control", order)

    def line(self, line: Line, *, style: bool = False) -> Tensor:
        """Paint independent image prompts into independent maps; `style` in the style block."""
        outlines = independent.outlines(self.mapped(), line)
        scale = STYLE_ONLY if style else 1.0
        order = self._controlled(outlines, layout.CONTROLNET, scale)
        return self.paint(f"{line.name}{' style' if style else ''}", order)

    def area(self) -> Tensor:
        """Paint independent image prompts into filled areas of other shapes."""
        areas = independent.areas(self.mapped()).float()[:, None].expand(-1, 3, -1, -1)
        return self.paint("area", self._controlled(areas, layout.AREA))

    def sketch(self) -> Tensor:
        """Paint independent image prompts into outlines by the T2I-Adapter."""
        outlines = independent.outlines(self.mapped(), independent.LINES[0])
        return self.paint("sketch", self._controlled(outlines, layout.SKETCH))

    def _controlled(
        self, maps: Tensor, network: Path, scale: float | dict[str, Any] = 1.0
    ) -> Order:
        image = independent.draw(self.others)
        return Order(self._nothing, 4000, image=image, control=maps, network=network, scale=scale)

    def inpainted(self) -> Tensor:
        """Hide the right or left half of clean pictures; paint it anew by an image prompt."""
        start, hidden = self.halves()
        order = Order(
            self._nothing,
            first_seed=6000,
            image=independent.draw(self.others),
            start=start,
            hidden=hidden,
        )
        return self.paint("inpainted", order)

    def halves(self) -> tuple[Tensor, Tensor]:
        """Return the pictures to inpaint, uint8, and which half of each is hidden, bool."""
        start = independent.draw([replace(picture, offset=0.5) for picture in self.others])
        hidden = torch.zeros(len(start), *start.shape[2:], dtype=torch.bool)
        middle = start.shape[-1] // 2
        hidden[0::2, :, :middle] = True
        hidden[1::2, :, middle:] = True
        return start, hidden

    def zero_difference(self) -> float:
        """Return the largest difference of pixels (0 to 1) between scale 0 and no adapter."""
        some = self.captions[:8]
        base = self.painter.paint(Order(some, first_seed=0))
        zero = self.painter.paint(Order(some, first_seed=0, image=self.prompts[:8], scale=0.0))
        return (base.float() - zero.float()).abs().max().item() / 255
