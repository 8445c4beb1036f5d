"""Few steps: a LoRA that makes the UNet a consistency model (LCM, arXiv 2311.05556, in small).

The frozen model with guidance takes DDIM steps from a noised latent down a quarter of the schedule;
the model with the LoRA must predict the same picture before and after them. A quarter and not one
step of the solver: what is right at the end of the schedule then reaches its beginning over four
predictions, not fifty, so that far fewer steps of training are needed. Guidance is learnt at one
fixed scale, so that a picture takes four steps without it; DPM-Solver++ takes them more often right
than LCM's own sampler does. It needs stages 1 to 4 and leaves them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from training import adapter, architecture, diffusion, lora, pool, unet
from training.adapter import Adapter, Frozen
from training.loop import Budget, Loop, arguments, autocast
from training.lora import Lora
from training.pool import Views
from training.world import Scenes

RANK: Final = 32
#: Scale of the guidance that is learnt.
GUIDANCE: Final = 3.5
#: Points of the schedule where a prediction is taught; LCMScheduler chooses among the same.
POINTS: Final = 50
#: How far the frozen model goes down before the prediction is compared, in training steps, and in
#: how many steps of its solver.
DOWN: Final = 250
SOLVER_STEPS: Final = 2
#: Where LCMScheduler's four steps lie (DPM-Solver++'s: 999, 749, 499, 249), and the share of the
#: batch that is taught there.
FOUR: Final = (999, 759, 499, 259)
AT_FOUR: Final = 0.5
#: LCM's boundary condition: at step 0 the latent itself is the answer.
SIGMA_DATA: Final = 0.5
TIMESTEP_SCALING: Final = 10.0
#: Share of the pictures that have a text and no image prompt.
TEXT_ONLY: Final = 0.25
HUBER: Final = 0.03


@dataclass(frozen=True)
class Pair:
    """Conditions of one batch: with the prompt, and without for guidance. `scale` is lambda."""

    given: unet.Conditions
    empty: unet.Conditions
    scale: Tensor


def _levels(steps: Tensor) -> tuple[Tensor, Tensor]:
    """Return signal and noise of each step, `(n, 1, 1, 1)`; step -1 is the picture itself."""
    signal = torch.cat([diffusion.schedule().alphas_cumprod, torch.ones(1)])[steps]
    return signal.sqrt()[:, None, None, None], (1 - signal).sqrt()[:, None, None, None]


def _picture(latents: Tensor, velocity: Tensor, steps: Tensor) -> Tensor:
    signal, noise = _levels(steps)
    return signal * latents - noise * velocity


def consistent(latents: Tensor, velocity: Tensor, steps: Tensor) -> Tensor:
    """Return the picture that a consistency model predicts, from its velocity."""
    scaled = TIMESTEP_SCALING * steps.clamp(min=0).float()[:, None, None, None]
    skip = SIGMA_DATA**2 / (scaled.square() + SIGMA_DATA**2)
    out = scaled / (scaled.square() + SIGMA_DATA**2).sqrt()
    return skip * latents + out * _picture(latents, velocity, steps)


def solver_step(latents: Tensor, velocity: Tensor, steps: Tensor, earlier: Tensor) -> Tensor:
    """Take one DDIM step from `steps` down to `earlier`, `(n,)` each."""
    signal, noise = _levels(steps)
    picture, added = signal * latents - noise * velocity, noise * latents + signal * velocity
    signal, noise = _levels(earlier)
    return signal * picture + noise * added


def choose_steps(n: int, generator: torch.Generator) -> Tensor:
    """Choose where `n` predictions are taught, `(n,)`: half of them where four steps lie."""
    size = 1000 // POINTS
    anywhere = size * torch.randint(1, POINTS + 1, (n,), generator=generator) - 1
    four = torch.tensor(FOUR)[torch.randint(len(FOUR), (n,), generator=generator)]
    return torch.where(torch.rand(n, generator=generator) < AT_FOUR, four, anywhere)


class Distillation:
    """The frozen UNet twice: as it is, and with the LoRA; both with the adapter `beside`."""

    def __init__(self, frozen: Frozen, beside: Adapter, changed: UNet2DConditionModel) -> None:
        self.frozen, self.beside = frozen, beside
        self.changed = changed
        self.copy = Adapter(changed, architecture.SHAPES, plus=False)
        self.copy.load_state_dict(beside.state_dict())
        for model in (beside, self.copy):
            model.requires_grad_(requires_grad=False)
        self.lora = Lora(changed, RANK, lora.EVERYTHING)
        scenes = pool.scenes(min(pool.PLAIN, len(frozen.latents)))
        self.scenes: Scenes = scenes
        self.views = Views(scenes, pool.prompts(len(frozen.images)))

    def pair(self, rows: Tensor, generator: torch.Generator) -> Pair:
        """Choose texts and image prompts for rows of the pool."""
        size, n = architecture.SHAPES.size, len(rows)
        prompts = adapter.choose(self.scenes, rows, self.views, generator)
        text_only = torch.rand(n, generator=generator) < TEXT_ONLY
        sentences = torch.where(
            text_only, unet.choose(self.scenes[rows], generator), prompts.sentences
        )
        seen = self.frozen.images[prompts.images].float()
        given = self.beside.join(unet.conditions(self.frozen.text, sentences, size), seen)
        zeros = torch.full((n,), pool.ZEROS)
        empty = self.beside.join(
            unet.conditions(self.frozen.text, zeros, size),
            self.frozen.no_image.expand(n, *self.frozen.no_image.shape),
        )
        scale = (~(text_only | prompts.style)).float()[:, None, None, None]
        return Pair(given, empty, scale)

    def loss(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return the difference of the predictions before and after the solver's steps."""
        latents = self.frozen.latents[rows]
        steps = choose_steps(len(rows), generator)
        signal, noise = _levels(steps)
        noised = signal * latents + noise * torch.randn(latents.shape, generator=generator)
        with torch.no_grad():
            pair = self.pair(rows, generator)
            for model in (self.beside, self.copy):
                for attention in model.attentions.values():
                    attention.scale = pair.scale
            before, reached = self._solve(noised, steps, pair)
            with autocast():
                said = _velocity(self.changed, before, reached.clamp(min=0), pair.given)
            wanted = consistent(before, said.float(), reached)
            # At the end of the schedule the solver has reached the picture itself.
            wanted = torch.where((reached < 0)[:, None, None, None], before, wanted)
        with autocast():
            answer = _velocity(self.changed, noised, steps, pair.given)
        error = consistent(noised, answer.float(), steps) - wanted
        return ((error.square() + HUBER**2).sqrt() - HUBER).mean()

    def _solve(self, latents: Tensor, steps: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
        """Take the frozen model's steps with guidance; return the latents and where they are."""
        down = (steps + 1).clamp(max=DOWN)
        at = steps
        for part in range(1, SOLVER_STEPS + 1):
            with autocast():
                asked = _velocity(self.frozen.unet, latents, at, pair.given)
                plain = _velocity(self.frozen.unet, latents, at, pair.empty)
            velocity = (plain + GUIDANCE * (asked - plain)).float()
            below = steps - down * part // SOLVER_STEPS
            latents, at = solver_step(latents, velocity, at, below), below
        return latents, at


def _velocity(
    model: UNet2DConditionModel, latents: Tensor, steps: Tensor, conditions: unet.Conditions
) -> Tensor:
    return conditions.predict(model, diffusion.Noised(latents=latents, target=latents, steps=steps))


def train(distillation: Distillation, budget: Budget, out: Path, seed: int = 0) -> Lora:
    """Train the LoRA and return it averaged."""
    loop = Loop("lcm", distillation.lora, budget, out)

    def step(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        rows = torch.randint(len(distillation.scenes), (unet.BATCH,), generator=generator)
        return distillation.loss(rows, generator)

    loop.run(step)
    loop.averaged()
    return distillation.lora


def start(out: Path) -> Distillation:
    """Read stages 1 to 4 from `out`, with a fresh LoRA."""
    frozen = adapter.frozen_parts(out, plus=False)
    beside = adapter.load(out, frozen.unet, plus=False)
    return Distillation(frozen, beside, unet.load(out))


def load(out: Path) -> Lora:
    """Read the averaged LoRA from its checkpoint."""
    result = Lora(unet.load(out), RANK, lora.EVERYTHING)
    Loop("lcm", result, Budget(0, 0, ema=1), out).averaged()
    return result


if __name__ == "__main__":
    options = arguments(__doc__, minutes=20)
    torch.manual_seed(options.seed)
    learning = Budget(options.minutes, 1e-3, weight_decay=0.0, ema=0.998, warmup_steps=100)
    train(start(options.out), learning, options.out, options.seed)
