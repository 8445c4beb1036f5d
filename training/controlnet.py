"""Stage 5: a ControlNet for outlines, on the frozen UNet with the frozen adapter beside it.

A copy of the UNet's encoder with zero convolutions (arXiv 2302.05543). Half of its batches carry an
image prompt of another shape in the target's paint, so that it learns to overrule an image's
shape. Maps are drawn and distorted as people and edge detectors make them. It needs stages 1 to 4
and leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from training import adapter, architecture, captions, clip, diffusion, maps, pool, unet
from training.adapter import Adapter, Frozen
from training.loop import Budget, Loop, autocast, stage_parser
from training.pool import Views
from training.towers import leave_out, truth

#: The checkpoint of each kind of map.
NAMES: Final = {"outline": "controlnet", "area": "controlnet-area"}
#: Chance of an empty text beside an image prompt, of no image prompt, and of no text at all.
EMPTY: Final = 0.7
NO_IMAGE: Final = 0.4
KEEP: Final = 0.6
#: Chance that an image prompt acts in the style block alone.
STYLE: Final = 0.25


def empty(model: UNet2DConditionModel) -> ControlNetModel:
    """Return an untrained ControlNet that copies the encoder of `model`."""
    return ControlNetModel.from_unet(
        model, conditioning_embedding_out_channels=architecture.SHAPES.control
    )


@dataclass(frozen=True)
class Conditioning:
    """What a batch is conditioned on: the ControlNet on `text`, the UNet on text and image.

    `joined` has the image's tokens behind the text's. `maps` is `(n, 3, size, size)`, 0 to 1.
    """

    text: unet.Conditions
    joined: unet.Conditions
    maps: Tensor


def predict(
    controlnet: ControlNetModel,
    model: UNet2DConditionModel,
    noised: diffusion.Noised,
    conditioning: Conditioning,
) -> Tensor:
    """Run both networks on a noised batch."""
    text = conditioning.text
    added = {"text_embeds": text.pooled, "time_ids": text.time_ids}
    down, middle = controlnet(
        noised.latents,
        noised.steps,
        text.context,
        controlnet_cond=conditioning.maps,
        added_cond_kwargs=added,
        return_dict=False,
    )
    sample: Tensor = model(
        noised.latents,
        noised.steps,
        conditioning.joined.context,
        added_cond_kwargs=added,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
    ).sample
    return sample


#: Predicts the velocity of a noised batch.
Predict: TypeAlias = Callable[[diffusion.Noised, Conditioning], Tensor]


def train(
    loop: Loop, predicted: Predict, frozen: Frozen, beside: Adapter, kind: str, seed: int = 0
) -> None:
    """Train the network of `loop` on maps of a kind, with the adapter `beside` attached.

    `predicted` runs that network and the frozen UNet. The average is in the network afterwards.
    """
    shape = architecture.SHAPES
    frozen.unet.requires_grad_(requires_grad=False)
    beside.requires_grad_(requires_grad=False)
    scenes = pool.scenes(len(frozen.latents))
    views = Views(scenes, pool.prompts(len(frozen.images)))

    def step(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        rows = torch.randint(len(frozen.latents), (unet.BATCH,), generator=generator)
        seen = frozen.images[views.any_shape(rows, generator)].float()
        text_only, alone = (torch.rand(unet.BATCH, generator=generator) for _ in range(2))
        sentences = clip.numbers(leave_out(truth(scenes[rows]), KEEP, generator))
        sentences[(text_only >= NO_IMAGE) & (alone < EMPTY)] = captions.EMPTY
        # Guidance runs the ControlNet on the unconditional half as well.
        sentences[text_only < 0.1] = pool.ZEROS
        seen[text_only < NO_IMAGE] = frozen.no_image
        text = unet.conditions(frozen.text, sentences, shape.size)
        drawn = maps.draw(kind, scenes[rows], shape.size, generator)
        noised = diffusion.noise(frozen.latents[rows], generator)
        beside.act_in_style_block(torch.rand(unet.BATCH, generator=generator) < STYLE)
        with autocast():
            conditioning = Conditioning(text, beside.join(text, seen), drawn)
            prediction = predicted(noised, conditioning)
        return noised.loss(prediction)

    loop.run(step)
    loop.averaged()


def load(out: Path, frozen: UNet2DConditionModel, kind: str = "outline") -> ControlNetModel:
    """Read the averaged ControlNet of a kind from its checkpoint."""
    model = empty(frozen)
    Loop(NAMES[kind], model, Budget(0, 0, ema=1), out).averaged()
    return model.eval()


if __name__ == "__main__":
    parser = stage_parser(__doc__, minutes=20)
    parser.add_argument("--kind", choices=maps.KINDS, default="outline", help="of the maps")
    given = parser.parse_args()
    parts = adapter.frozen_parts(given.out, plus=False)
    torch.manual_seed(given.seed)
    copied = empty(parts.unet)  # before the adapter is attached: it would be copied too
    copied.set_attn_processor(AttnProcessor())  # see `training.decoupled`
    attached = adapter.load(given.out, parts.unet, plus=False)
    learning = Budget(given.minutes, 8e-4, ema=0.995, warmup_steps=100)
    running = Loop(NAMES[given.kind], copied, learning, given.out)
    train(running, partial(predict, copied, parts.unet), parts, attached, given.kind, given.seed)
