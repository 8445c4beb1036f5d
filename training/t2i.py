"""A T2I-Adapter for outlines (arXiv 2302.08453), on the frozen UNet with the adapter beside it.

Half of the ControlNet's size; it runs once a picture, not at every step, and sees neither text
nor noise. It learns from the same maps, texts and image prompts (`training.controlnet`). It needs
stages 1 to 4 and leaves them as they are.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import torch
from diffusers import T2IAdapter, UNet2DConditionModel
from torch import Tensor

from training import adapter, architecture, controlnet, diffusion
from training.architecture import Architecture
from training.controlnet import Conditioning
from training.loop import Budget, Loop, arguments

NAME: Final = "t2i-adapter"


def empty(shape: Architecture) -> T2IAdapter:
    """Return an untrained T2I-Adapter of SDXL's layout for the UNet of `shape`."""
    return T2IAdapter(
        channels=[*shape.unet, shape.unet[-1]],
        num_res_blocks=2,
        downscale_factor=2 * shape.size // shape.latent_size,
        adapter_type="full_adapter_xl",
    )


def predict(
    model: T2IAdapter,
    unet: UNet2DConditionModel,
    noised: diffusion.Noised,
    conditioning: Conditioning,
) -> Tensor:
    """Run both networks on a noised batch."""
    joined = conditioning.joined
    sample: Tensor = unet(
        noised.latents,
        noised.steps,
        joined.context,
        added_cond_kwargs={"text_embeds": joined.pooled, "time_ids": joined.time_ids},
        down_intrablock_additional_residuals=model(conditioning.maps),
    ).sample
    return sample


def load(out: Path) -> T2IAdapter:
    """Read the averaged T2I-Adapter from its checkpoint."""
    model = empty(architecture.SHAPES)
    Loop(NAME, model, Budget(0, 0, ema=1), out).averaged()
    return model.eval()


if __name__ == "__main__":
    given = arguments(__doc__, minutes=26)
    parts = adapter.frozen_parts(given.out, plus=False)
    torch.manual_seed(given.seed)
    fresh = empty(architecture.SHAPES)
    attached = adapter.load(given.out, parts.unet, plus=False)
    running = Loop(NAME, fresh, Budget(given.minutes, 1e-3, ema=0.998, warmup_steps=100), given.out)
    controlnet.train(
        running, partial(predict, fresh, parts.unet), parts, attached, "outline", given.seed
    )
