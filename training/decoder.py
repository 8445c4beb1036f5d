"""Stage 1b: the autoencoder's decoder alone, further, on whole pictures.

The later stages see only the encoder's latents, so this can be trained at any time after stage 1
and in any order with the others. The encoder stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from training import architecture, drawing, team, vae, world
from training.loop import Budget, Loop, arguments

BATCH: Final = 4
#: Spread of the noise on standardised latents: a UNet's are never quite the encoder's.
NOISE: Final = 0.05


def _frozen_encoder(out: Path) -> AutoencoderKL:
    model = vae.load(out)
    model.requires_grad_(requires_grad=False)
    model.decoder.requires_grad_(requires_grad=True)
    model.post_quant_conv.requires_grad_(requires_grad=True)
    return model.to(memory_format=torch.channels_last)


def loss(model: AutoencoderKL, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Reconstruction (l1 + mse) from the posterior's mean with a little noise."""
    with torch.no_grad():
        latents = model.encode(pixels).latent_dist.mean
    latents = latents + NOISE * torch.randn(latents.shape, generator=generator)
    picture = model.decode(latents).sample
    return functional.l1_loss(picture, pixels) + functional.mse_loss(picture, pixels)


def train(minutes: float, out: Path, seed: int = 0) -> None:
    """Train for `minutes` in all."""
    torch.manual_seed(seed)
    model = _frozen_encoder(out)
    budget = Budget(minutes, 7e-4, weight_decay=0.0, warmup_steps=50, ema=0.99)
    loop = Loop("decoder", model, budget, out)

    def step(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        scenes = world.sample(max(1, BATCH // team.size()), generator)
        pixels = vae.to_model(drawing.draw(scenes, architecture.SHAPES.size))
        return loss(model, pixels, generator)

    loop.run(step)


def load(out: Path) -> AutoencoderKL:
    """Read the autoencoder with its averaged decoder; without this stage, as stage 1 left it."""
    model = _frozen_encoder(out)
    Loop("decoder", model, Budget(0, 0, ema=1), out).averaged()
    return model.to(memory_format=torch.contiguous_format).eval()


if __name__ == "__main__":
    given = arguments(__doc__, minutes=8)
    train(given.minutes, given.out, given.seed)
