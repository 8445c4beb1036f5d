"""Stage 2: CLIP. Two text encoders and an image encoder, trained together on fresh drawings.

It needs no other stage. What it leaves in its checkpoint is a `training.towers.Towers`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from training import architecture, augment, captions, distributed, drawing, tokenizer, world
from training.loop import Budget, Loop, arguments
from training.towers import Towers, leave_out, see, truth

BATCH: Final = 64
#: Chance of naming an attribute in a caption; 0.8 to the fourth is 41 % full captions.
KEEP: Final = 0.8
CASES: Final = 500


def sentence_tokens() -> Tensor:
    """Tokenise all of `captions.SENTENCES`, `(sentences, MAX_TOKENS)`."""
    with tempfile.TemporaryDirectory() as scratch:
        words = tokenizer.write(Path(scratch))
    padded = words(list(captions.SENTENCES), padding="max_length", return_tensors="pt")
    tokens: Tensor = padded.input_ids
    return tokens


def numbers(named: Tensor) -> Tensor:
    """Give the sentence numbers of captions naming `(n, 4)` attributes."""
    return torch.tensor([captions.number(*row) for row in named.tolist()])


def loss(model: Towers, tokens: Tensor, seed: int, said: Tensor | None = None) -> Tensor:
    """Draw a batch of this seed and return the towers' loss on it.

    `said` is what the text encoders say of each of `captions.SENTENCES`; see `Towers.loss`. With
    it, pictures are drawn and distorted as image prompts are.
    """
    generator = torch.Generator().manual_seed(seed)
    scenes = world.sample(BATCH // distributed.size(), generator, wide=said is not None)
    named = leave_out(truth(scenes), KEEP, generator)
    pixels = (
        see(drawing.draw(scenes, architecture.SHAPES.size))
        if said is None
        else augment.prompts(scenes, generator)
    )
    spoken = None if said is None else said[numbers(truth(scenes))]
    return model.loss(pixels, tokens[numbers(named)], named, scenes, spoken)


def train(minutes: float, out: Path, seed: int = 0) -> Towers:
    """Train for `minutes` in all and return the towers, averaged."""
    torch.manual_seed(seed)
    tokens = sentence_tokens()
    model = Towers(architecture.SHAPES, int(tokens.max()) + 1)
    loop = Loop("clip", model, Budget(minutes, 8e-4, weight_decay=0.02, ema=0.998), out)

    def step(number: int) -> Tensor:
        return loss(model, tokens, seed * 1_000_003 + number)

    loop.run(step)
    loop.averaged()
    return model.eval()


def load(out: Path) -> Towers:
    """Read the averaged towers from their checkpoint."""
    model = Towers(architecture.SHAPES, int(sentence_tokens().max()) + 1)
    Loop("clip", model, Budget(0, 0, ema=1), out).averaged()
    return model.eval()


def report(model: Towers, seed: int) -> dict[str, dict[str, float]]:
    """Read attributes off drawings never seen, of the training pairs and the held-out ones."""
    result = {}
    for name, held_out, wide in (
        ("training pairs, clean", False, False),
        ("training pairs", False, True),
        ("held-out pairs", True, True),
    ):
        generator = torch.Generator().manual_seed(seed)
        scenes = world.sample(CASES, generator, held_out=held_out, wide=wide)
        pixels = (
            augment.prompts(scenes, generator)
            if wide
            else see(drawing.draw(scenes, architecture.SHAPES.size))
        )
        result[name] = model.accuracy(pixels, scenes)
    return result


if __name__ == "__main__":
    given = arguments(__doc__, minutes=24)
    towers = train(given.minutes, given.out, given.seed)
    if distributed.rank() == 0:
        print(json.dumps(report(towers, seed=12345), indent=2))
