"""The pool of drawn pictures the later stages learn from, with all that is frozen computed once.

Scenes come from a seed and are never stored; latents and image features are, beside the
checkpoints. It knows the frozen encoders, not what is trained on their output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPVisionModelWithProjection

from training import drawing, team, world
from training.captions import SENTENCES
from training.towers import Towers, see
from training.vae import to_model
from training.world import Scenes

SIZE: Final = 32_000
SEED: Final = 7
#: Few at a time: their activations then stay in the cache, which is five times as fast.
CHUNK: Final = 8
#: Number of the all-zero row after the sentences: what a pipeline feeds for no negative prompt.
ZEROS: Final = len(SENTENCES)


def scenes(n: int = SIZE) -> Scenes:
    """Return the pool's scenes, the same each time."""
    return world.sample(n, torch.Generator().manual_seed(SEED))


@torch.no_grad()
def _each(n: int, size: int, encode: Callable[[Tensor], Tensor], path: Path) -> Tensor:
    """Encode the pool's pictures chunk by chunk; keep the result at `path`."""
    if path.exists():
        stored: Tensor = torch.load(path, weights_only=True)
        return stored
    team.join()
    share = n // team.size()
    own = scenes(n)[team.rank() * share : (team.rank() + 1) * share]
    part = torch.cat(
        [
            encode(drawing.draw(own[start : start + CHUNK], size))
            for start in tqdm(range(0, share, CHUNK), desc=path.stem, mininterval=10)
        ]
    )
    result = team.gather(part)
    if team.rank() == 0:
        torch.save(result, path)
    return result


def latents(vae: AutoencoderKL, out: Path, size: int, n: int = SIZE) -> Tensor:
    """Encode the pool: the posteriors' means, not yet scaled, `(n, 4, size / 8, size / 8)`."""
    vae = vae.to(memory_format=torch.channels_last)
    return _each(
        n, size, lambda p: vae.encode(to_model(p)).latent_dist.mean.contiguous(), out / "latents.pt"
    )


@dataclass(frozen=True)
class ImageFeatures:
    """What the two adapters see of the pool: `(n, projection)` and `(n, patches + 1, width)`."""

    embeddings: Tensor
    penultimate: Tensor


def image_features(
    encoder: CLIPVisionModelWithProjection, out: Path, size: int, n: int = SIZE
) -> ImageFeatures:
    """Encode the pool's pictures as image prompts, in half precision."""

    def encode(pixels: Tensor) -> Tensor:
        seen = encoder(see(pixels), output_hidden_states=True)
        return torch.cat([seen.image_embeds, seen.hidden_states[-2].flatten(1)], dim=1).half()

    joined = _each(n, size, encode, out / "features.pt")
    width = encoder.config.projection_dim
    penultimate = joined[:, width:].unflatten(1, (-1, encoder.config.hidden_size))
    return ImageFeatures(joined[:, :width], penultimate)


@dataclass(frozen=True)
class TextFeatures:
    """Both text encoders' output for every sentence, and zeros as the last row.

    `context` is `(sentences + 1, tokens, dim)`, `pooled` `(sentences + 1, projection)`.
    """

    context: Tensor
    pooled: Tensor


@torch.no_grad()
def text_features(towers: Towers, tokens: Tensor) -> TextFeatures:
    """Encode sentences as SDXL's pipeline does: penultimate layers side by side, pooled second."""
    first = towers.text_encoder(tokens, output_hidden_states=True)
    second = towers.text_encoder_2(tokens, output_hidden_states=True)
    context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    pooled = second.text_embeds
    return TextFeatures(
        torch.cat([context, torch.zeros_like(context[:1])]),
        torch.cat([pooled, torch.zeros_like(pooled[:1])]),
    )


class Views:
    """Finds another picture of the same object in the pool: another place, size and rotation."""

    def __init__(self, pool: Scenes) -> None:
        nothing = torch.zeros_like(pool.shape)
        self._same = _Groups(pool.combination())
        # What is left out of the number may be anything.
        self._object = _Groups(world.combination(pool.shape, pool.colour, pool.fill, nothing))
        self._paint = _Groups(world.combination(nothing, pool.colour, pool.fill, pool.background))

    def same_background(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Pick a picture for each of `rows` that shares all four attributes, `(n,)`."""
        return self._same.pick(rows, generator)

    def any_background(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Pick a picture for each of `rows` that shares shape, colour and fill, `(n,)`."""
        return self._object.pick(rows, generator)

    def any_shape(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Pick a picture for each of `rows` that shares colour, fill and background, `(n,)`."""
        return self._paint.pick(rows, generator)


class _Groups:
    """Rows of equal numbers, found in one look-up each."""

    def __init__(self, number: Tensor) -> None:
        self._number = number
        self._order = number.argsort()
        self._count = number.bincount()
        self._start = self._count.cumsum(0) - self._count

    def pick(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        number = self._number[rows]
        random = torch.rand(len(rows), generator=generator)
        return self._order[self._start[number] + (random * self._count[number]).long()]
