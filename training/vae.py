"""Stage 1: the autoencoder, f = 8, trained on crops first and on whole pictures at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from training import architecture, distributed, drawing, world
from training.loop import Budget, Loop, arguments

BATCH: Final = 16
CROP: Final = 64
#: Whole pictures at a time: four times a crop's pixels.
WHOLE: Final = 4
#: Share of the budget after which whole pictures take the place of crops: group norm sees a
#: crop's statistics otherwise.
CROPS_UNTIL: Final = 0.8
#: Keeps the latents' spread in bounds without blurring; in means, not sums.
KL_WEIGHT: Final = 2e-5
#: Spread of further noise on the latents, at most, and the weight of what keeps their own at 1.
#: A UNet's latents are never quite the encoder's: what hangs on small differences, it gets wrong.
NOISE: Final = 0.4
SPREAD_WEIGHT: Final = 0.05


def to_model(pixels: Tensor) -> Tensor:
    """Scale uint8 pixels to -1..1, channels last in memory."""
    scaled = pixels.float() / 127.5 - 1
    return scaled.contiguous(memory_format=torch.channels_last)


def loss(model: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Reconstruction (l1 + mse) through noise, from latents of unit spread; pixels in -1..1."""
    posterior = model.encode(pixels).latent_dist
    latents = posterior.sample()
    noise = NOISE * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
    picture = model.decode(latents + noise).sample
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    spread = latents.std((0, 2, 3)) - 1, latents.mean((0, 2, 3))
    rebuilt = functional.l1_loss(picture, pixels) + functional.mse_loss(picture, pixels)
    total: Tensor = (
        rebuilt + KL_WEIGHT * divergence + SPREAD_WEIGHT * torch.stack(spread).square().mean()
    )
    return total


def crop(scenes: world.Scenes, size: int, generator: torch.Generator) -> Tensor:
    """Draw the scenes and cut one window each, mostly around the object."""
    jitter = torch.rand(2, len(scenes), generator=generator) - 0.5
    middle = torch.stack([scenes.y, scenes.x]) + jitter * CROP / size
    corners = (middle * size - CROP / 2).round().long().clamp(0, size - CROP)
    windows = zip(drawing.draw(scenes, size), *corners.tolist(), strict=True)
    return torch.stack([p[:, y : y + CROP, x : x + CROP] for p, y, x in windows])


def train(minutes: float, out: Path, seed: int = 0) -> AutoencoderKL:
    """Train for `minutes` in all and return the autoencoder."""
    torch.manual_seed(seed)
    model = architecture.vae(architecture.SHAPES).to(memory_format=torch.channels_last)
    loop = Loop("vae", model, Budget(minutes, 2.5e-3, weight_decay=0.0), out)
    size = architecture.SHAPES.size

    def step(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        if loop.seconds < CROPS_UNTIL * minutes * 60:
            pixels = crop(world.sample(BATCH // distributed.size(), generator), size, generator)
        else:
            pixels = drawing.draw(world.sample(WHOLE // distributed.size(), generator), size)
        return loss(model, to_model(pixels))

    loop.run(step)
    return model


@torch.no_grad()
def standardise(model: AutoencoderKL, pixels: Tensor) -> None:
    """Give every latent channel of `pixels` zero mean and unit spread, changing no picture.

    The two 1 x 1 convolutions around the latents take the change up exactly. `scaling_factor` is
    then 1 / the spread over all of them, as for SDXL's.
    """
    means = model.encode(pixels).latent_dist.mean
    mean, spread = means.mean((0, 2, 3)), means.std((0, 2, 3))
    channels = len(mean)
    into, back = model.quant_conv, model.post_quant_conv
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight *= spread[None, :, None, None]
    into.weight[:channels] /= spread[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / spread
    into.bias[channels:] -= 2 * spread.log()
    latents = model.encode(pixels).latent_dist.mean
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))


def load(out: Path) -> AutoencoderKL:
    """Read the trained autoencoder from its checkpoint and standardise its latents."""
    model = architecture.vae(architecture.SHAPES)
    Loop("vae", model, Budget(0, 0), out)
    scenes = world.sample(64, torch.Generator().manual_seed(1))
    standardise(model, to_model(drawing.draw(scenes, architecture.SHAPES.size)))
    return model.eval()


if __name__ == "__main__":
    given = arguments(__doc__, minutes=40)
    train(given.minutes, given.out, given.seed)
