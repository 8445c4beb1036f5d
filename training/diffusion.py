"""What all denoisers are trained on: noised latents, the velocity they hide, and its weight.

It knows nothing of what the latents show or of the networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from training.architecture import SCHEDULER

#: Min-SNR weighting's bound (arXiv 2303.09556).
GAMMA: Final = 5.0


@dataclass(frozen=True)
class Noised:
    """A batch under way: `latents` and the `target` velocity `(n, 4, h, w)`, `steps` `(n,)`."""

    latents: Tensor
    target: Tensor
    steps: Tensor
    weight: Tensor

    def loss(self, prediction: Tensor) -> Tensor:
        """Mean squared error of a predicted velocity, weighted by its step's."""
        error = (prediction - self.target).square().flatten(1).mean(1)
        return (error * self.weight).mean()


def noise(latents: Tensor, generator: torch.Generator) -> Noised:
    """Noise each of the latents `(n, 4, h, w)` to a step of its own."""
    scheduler = DDIMScheduler(**SCHEDULER)
    steps = torch.randint(
        cast(Any, scheduler.config).num_train_timesteps, (len(latents),), generator=generator
    )
    added = torch.randn(latents.shape, generator=generator)
    noisy = cast(Tensor, scheduler.add_noise(latents, added, cast(Any, steps)))
    target = scheduler.get_velocity(latents, added, cast(Any, steps))
    signal = scheduler.alphas_cumprod[steps]
    ratio = signal / (1 - signal)
    return Noised(noisy, target, steps, ratio.clamp(max=GAMMA) / (ratio + 1))
