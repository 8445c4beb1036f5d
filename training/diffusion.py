"""What all denoisers are trained on: noised latents, the velocity they hide, and its weight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final, cast

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from training.architecture import SCHEDULER

#: Where the steps are drawn: most of them with a log of the signal-to-noise ratio around this mean,
#: where shapes are decided (as EDM does, arXiv 2206.00364, section 5), the rest evenly over all.
#: Drawn evenly, half of the steps of `SCHEDULER` lie where next to nothing is seen of a shape.
LOG_SNR_MEAN: Final = -1.5
LOG_SNR_SPREAD: Final = 1.75
EVENLY: Final = 0.25


@dataclass(frozen=True)
class Noised:
    """A batch under way: `latents` and the `target` velocity `(n, 4, h, w)`, `steps` `(n,)`."""

    latents: Tensor
    target: Tensor
    steps: Tensor

    def loss(self, prediction: Tensor) -> Tensor:
        """Mean squared error of a predicted velocity."""
        return (prediction - self.target).square().mean()


@cache
def schedule() -> DDIMScheduler:
    """Return the noise schedule all denoisers share."""
    return DDIMScheduler(**SCHEDULER)


@cache
def chances() -> Tensor:
    """Chance of each step of the schedule to be drawn, `(1000,)`, summing to 1."""
    signal = schedule().alphas_cumprod
    log_snr = (signal / (1 - signal)).log()
    density = (-0.5 * ((log_snr - LOG_SNR_MEAN) / LOG_SNR_SPREAD).square()).exp()
    around = density * torch.gradient(log_snr)[0].abs()
    result: Tensor = (1 - EVENLY) * around / around.sum() + EVENLY / len(signal)
    return result


def noise(latents: Tensor, generator: torch.Generator) -> Noised:
    """Noise each of the latents `(n, 4, h, w)` to a step of its own."""
    scheduler = schedule()
    steps = chances().multinomial(len(latents), replacement=True, generator=generator)
    added = torch.randn(latents.shape, generator=generator)
    whole = cast(torch.IntTensor, steps)
    return Noised(
        cast(Tensor, scheduler.add_noise(latents, added, whole)),
        scheduler.get_velocity(latents, added, whole),
        steps,
    )
