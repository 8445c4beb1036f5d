"""Stage 3: the text-to-image UNet on the pool's latents, with classifier-free dropout and EMA.

It needs stages 1 and 2, and leaves them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from training import architecture, captions, clip, diffusion, pool, vae
from training.architecture import Architecture
from training.loop import Budget, Loop, arguments, autocast
from training.pool import TextFeatures
from training.towers import leave_out, truth
from training.world import Scenes

#: Of one process, whatever their number: 16 pictures take 1.3 times as long each.
BATCH: Final = 32
#: How a caption is chosen: no text at all (zeros, what the pipeline feeds for an absent negative
#: prompt), the empty sentence (an image prompt alone), all four attributes, else some of them.
ZEROS: Final = 0.07
EMPTY: Final = 0.06
FULL: Final = 0.5
KEEP: Final = 0.6


@dataclass(frozen=True)
class Conditions:
    """What the UNet gets beside the latents: text `(n, tokens, dim)` and added conditions."""

    context: Tensor
    pooled: Tensor
    time_ids: Tensor

    def predict(self, unet: UNet2DConditionModel, noised: diffusion.Noised) -> Tensor:
        """Run the UNet on a noised batch."""
        added = {"text_embeds": self.pooled, "time_ids": self.time_ids}
        sample: Tensor = unet(
            noised.latents, noised.steps, self.context, added_cond_kwargs=added
        ).sample
        return sample


def conditions(text: TextFeatures, sentences: Tensor, size: int) -> Conditions:
    """Look up sentences `(n,)`; the time ids say: original and target size, no crop."""
    ids = torch.tensor([size, size, 0, 0, size, size], dtype=torch.float32)
    return Conditions(
        text.context[sentences], text.pooled[sentences], ids.expand(len(sentences), -1)
    )


def choose(scenes: Scenes, generator: torch.Generator) -> Tensor:
    """Choose a sentence for each scene, or none; `(n,)` row numbers of `TextFeatures`."""
    kind = torch.rand(len(scenes), generator=generator)
    partial = leave_out(truth(scenes), KEEP, generator)
    full = (kind >= ZEROS + EMPTY) & (kind < ZEROS + EMPTY + FULL)
    chosen = clip.numbers(torch.where(full[:, None], truth(scenes), partial))
    chosen[kind < ZEROS + EMPTY] = captions.EMPTY
    chosen[kind < ZEROS] = pool.ZEROS
    return chosen


def train(
    minutes: float, out: Path, latents: Tensor, text: TextFeatures, seed: int = 0
) -> UNet2DConditionModel:
    """Train for `minutes` in all on scaled `latents` of the pool; return the averaged UNet."""
    torch.manual_seed(seed)
    shape: Architecture = architecture.SHAPES
    model = architecture.unet(shape)
    model.set_attn_processor(AttnProcessor())  # see `training.decoupled`
    loop = Loop("unet", model, Budget(minutes, 1e-3, ema=0.998, warmup_steps=200), out)
    # The plain half of the pool: a text says nothing of other proportions.
    latents = latents[: pool.PLAIN]
    scenes = pool.scenes(len(latents))

    def step(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        noised = diffusion.noise(latents[rows], generator)
        conditioning = conditions(text, choose(scenes[rows], generator), shape.size)
        with autocast():
            prediction = conditioning.predict(model, noised)
        return noised.loss(prediction)

    loop.run(step)
    loop.averaged()
    return model.eval()


def load(out: Path) -> UNet2DConditionModel:
    """Read the averaged UNet from its checkpoint."""
    model = architecture.unet(architecture.SHAPES)
    Loop("unet", model, Budget(0, 0, ema=1), out).averaged()
    return model.eval()


if __name__ == "__main__":
    given = arguments(__doc__, minutes=130)
    frozen_vae = vae.load(given.out)
    frozen_text = pool.text_features(clip.load(given.out), clip.sentence_tokens())
    codes = pool.latents(frozen_vae, given.out, architecture.SHAPES.size)
    train(
        given.minutes, given.out, codes * frozen_vae.config.scaling_factor, frozen_text, given.seed
    )
