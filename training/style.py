"""LoRAs that teach the frozen UNet a look: dotted objects, hollow objects.

Captions and image prompts are those of the other stages; only the pictures they belong to are drawn
in the look, whatever fill is asked for. A third of the pictures has no image prompt, so that the
look comes with a text alone and with the adapter. It needs stages 1 to 4 and leaves them as they
are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from training import adapter, architecture, diffusion, drawing, lora, pool, unet, vae
from training.adapter import Adapter, Frozen
from training.loop import Budget, Loop, autocast, stage_parser
from training.lora import Lora
from training.pool import Views

RANK: Final = 8
#: How each look is drawn.
LOOKS: Final[dict[str, pool.Draw]] = {"dots": drawing.draw_dotted, "hollow": drawing.draw_hollow}
#: Pictures of a look; a LoRA of this rank needs no more.
PICTURES: Final = 6_000
#: Share of the pictures without an image prompt.
TEXT_ONLY: Final = 0.35


def name(look: str) -> str:
    """Return the checkpoint's name of a look."""
    return f"lora-{look}"


def train(
    loop: Loop, frozen: Frozen, beside: Adapter, changed: UNet2DConditionModel, seed: int = 0
) -> None:
    """Train the LoRA of `loop`, which is in `changed`, on the latents of `frozen`.

    The average is in the LoRA afterwards.
    """
    size = architecture.SHAPES.size
    scenes = pool.scenes(len(frozen.latents))
    views = Views(scenes, pool.prompts(len(frozen.images)))

    def step(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        rows = torch.randint(len(scenes), (unet.BATCH,), generator=generator)
        prompts = adapter.choose(scenes, rows, views, generator)
        absent = torch.rand(len(rows), generator=generator) < TEXT_ONLY
        texts = unet.choose(scenes[rows], generator)
        sentences = torch.where(absent, texts, prompts.sentences)
        seen = frozen.images[prompts.images].float()
        seen[prompts.no_image] = frozen.no_image
        noised = diffusion.noise(frozen.latents[rows], generator)
        beside.act_in_style_block(prompts.style, absent)
        with autocast():
            conditioning = beside.join(unet.conditions(frozen.text, sentences, size), seen)
            prediction = conditioning.predict(changed, noised)
        return noised.loss(prediction)

    loop.run(step)
    loop.averaged()


def load(out: Path, look: str) -> Lora:
    """Read the averaged LoRA of a look from its checkpoint."""
    result = Lora(unet.load(out), RANK, lora.EVERYTHING)
    Loop(name(look), result, Budget(0, 0, ema=1), out).averaged()
    return result


if __name__ == "__main__":
    parser = stage_parser(__doc__, minutes=15)
    parser.add_argument("--look", choices=tuple(LOOKS), default="dots")
    given = parser.parse_args()
    parts = adapter.frozen_parts(given.out, plus=False)
    autoencoder = vae.load(given.out)
    drawn = pool.latents(
        autoencoder,
        given.out,
        architecture.SHAPES.size,
        PICTURES,
        draw=LOOKS[given.look],
        name=f"latents-{given.look}",
    )
    parts = replace(parts, latents=drawn * autoencoder.config.scaling_factor)
    torch.manual_seed(given.seed)
    attached = adapter.load(given.out, parts.unet, plus=False)
    attached.requires_grad_(requires_grad=False)
    fresh = Lora(parts.unet, RANK, lora.EVERYTHING)
    learning = Budget(given.minutes, 2e-3, weight_decay=0.0, ema=0.995, warmup_steps=50)
    running = Loop(name(given.look), fresh, learning, given.out)
    train(running, parts, attached, parts.unet, given.seed)
