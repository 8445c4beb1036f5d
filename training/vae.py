"""Stage 1: the autoencoder, f = 8, trained on crops first and on whole pictures at the end.

It knows only pixels; what the pictures show is nothing to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from training import architecture, drawing, world
from training.loop import Budget, Loop, arguments

BATCH: Final = 16
CROP: Final = 64
#: Share of the budget after which whole pictures take the place of crops: group norm sees a
#: crop's statistics otherwise.
CROPS_UNTIL: Final = 0.75
#: Keeps the latents' spread in bounds without blurring; in means, not sums.
KL_WEIGHT: Final = 1e-4


def to_model(pixels: Tensor) -> Tensor:
    """Scale uint8 pixels to -1..1, channels last in memory."""
    scaled = pixels.float() / 127.5 - 1
    return scaled.contiguous(memory_format=torch.channels_last)


def loss(model: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Reconstruction (l1 + mse) and a small divergence from the unit normal; pixels in -1..1."""
    posterior = model.encode(pixels).latent_dist
    picture = model.decode(posterior.sample()).sample
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    rebuilt = functional.l1_loss(picture, pixels) + functional.mse_loss(picture, pixels)
    return rebuilt + KL_WEIGHT * divergence


def crop(pixels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Cut one random window a picture."""
    room = pixels.shape[-1] - side + 1
    corners = torch.randint(room, (len(pixels), 2), generator=generator).tolist()
    return torch.stack(
        [p[:, y : y + side, x : x + side] for p, (y, x) in zip(pixels, corners, strict=True)]
    )


def train(minutes: float, out: Path, seed: int = 0) -> AutoencoderKL:
    """Train for `minutes` in all and return the autoencoder."""
    torch.manual_seed(seed)
    model = architecture.vae(architecture.SHAPES).to(memory_format=torch.channels_last)
    loop = Loop("vae", model, Budget(minutes, 1.5e-3, weight_decay=0.0), out)
    size = architecture.SHAPES.size

    def step(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        if loop.seconds < CROPS_UNTIL * minutes * 60:
            pixels = crop(drawing.draw(world.sample(BATCH, generator), size), CROP, generator)
        else:
            pixels = drawing.draw(world.sample(BATCH // 2, generator), size)
        return loss(model, to_model(pixels))

    loop.run(step)
    return model


if __name__ == "__main__":
    given = arguments(__doc__, minutes=18)
    train(given.minutes, given.out, given.seed)
