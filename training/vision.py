"""Stage 2b: the image encoder alone, further, with both text encoders as they are.

The image embedding learns here what the base adapter will ask of it: that one linear layer reads
off what the text encoders say at a full caption's end; and the penultimate features, that a
resampler does. The UNet sees only the text encoders, so this can be trained beside or after stage
3; the adapters of stage 4 come after it.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from training import clip, distributed, pool
from training.loop import Budget, Loop, arguments
from training.towers import Towers


def freeze_text(model: Towers) -> Towers:
    """Freeze all but the image encoder and what reads it; return the same towers."""
    for part in (model.text_encoder, model.text_encoder_2, model.text_projection):
        part.requires_grad_(requires_grad=False)
    return model


def train(minutes: float, out: Path, seed: int = 1) -> Towers:
    """Train for `minutes` in all on drawings of another seed than stage 2's; return the towers."""
    tokens = clip.sentence_tokens()
    model = freeze_text(clip.load(out))
    said = pool.text_features(model, tokens).context
    budget = Budget(minutes, 6e-4, weight_decay=0.02, warmup_steps=100, ema=0.995)
    loop = Loop("vision", model, budget, out)

    def step(number: int) -> Tensor:
        return clip.loss(model, tokens, seed * 1_000_003 + number, said)

    loop.run(step)
    loop.averaged()
    return model.eval()


def load(out: Path) -> Towers:
    """Read the towers with the averaged image encoder; without this stage, as stage 2 left it."""
    model = freeze_text(clip.load(out))
    Loop("vision", model, Budget(0, 0, ema=1), out).averaged()
    return model.eval()


if __name__ == "__main__":
    given = arguments(__doc__, minutes=44)
    towers = train(given.minutes, given.out, given.seed + 1)
    if distributed.rank() == 0:
        print(json.dumps(clip.report(towers, seed=12345), indent=2))
