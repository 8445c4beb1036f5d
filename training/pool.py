"""The pool of drawn pictures the later stages learn from, with all that is frozen computed once.

Targets and image prompts are two sets of scenes. Both come from a seed and are never stored; their
latents and image features are, beside the checkpoints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPVisionModelWithProjection

from training import augment, distributed, drawing, world
from training.captions import SENTENCES
from training.loop import autocast
from training.towers import Towers
from training.vae import to_model
from training.world import Scenes

SIZE: Final = 24_000
PLAIN: Final = 16_000
PROMPTS: Final = 16_000
SEED: Final = 7
#: Few at a time: their activations then stay in the cache, which is five times as fast.
CHUNK: Final = 8
#: Number of the all-zero row after the sentences: what a pipeline feeds for no negative prompt.
ZEROS: Final = len(SENTENCES)


def scenes(n: int = SIZE) -> Scenes:
    """Return what the UNet learns to paint, the same each time; all in the clean look.

    The first `PLAIN` of them have the sizes and proportions of the clean world, the others those of
    the wide one, so that a control map is followed in all it may show.
    """
    generator = torch.Generator().manual_seed(SEED)
    plain = world.sample(min(n, PLAIN), generator)
    if n <= PLAIN:
        return plain
    wide = world.sample(n - PLAIN, generator, wide=True)
    return world.joined(world.shapes_only(plain), world.shapes_only(wide))


def prompts(n: int = PROMPTS) -> Scenes:
    """Return what the image prompts show, the same each time."""
    return world.sample(n, torch.Generator().manual_seed(SEED + 1), wide=True)


@torch.no_grad()
def _each(n: int, encode: Callable[[int, int], Tensor], encoder: nn.Module, path: Path) -> Tensor:
    """Encode rows from `start` to `stop`, chunk by chunk; keep the result at `path`.

    What is kept is used again as long as the weights of `encoder` are the same.
    """
    key = f"{_fingerprint(encoder)}-{n}"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        if kept["key"] == key:
            stored: Tensor = kept["rows"]
            return stored
    distributed.join()
    share = n // distributed.size()
    first = distributed.rank() * share
    starts = range(first, first + share, CHUNK)
    part = torch.cat(
        [
            encode(start, min(start + CHUNK, first + share))
            for start in tqdm(starts, desc=path.stem, mininterval=10)
        ]
    )
    result = distributed.gather(part)
    if distributed.rank() == 0:
        torch.save({"key": key, "rows": result}, path)
    return result


def _fingerprint(encoder: nn.Module) -> str:
    digest = hashlib.sha256()
    for weight in encoder.state_dict().values():
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


#: Draws scenes as pixels of a size, `(n, 3, size, size)`, uint8.
Draw: TypeAlias = Callable[[Scenes, int], Tensor]


def latents(
    vae: AutoencoderKL,
    out: Path,
    size: int,
    n: int = SIZE,
    *,
    draw: Draw = drawing.draw,
    name: str = "latents",
) -> Tensor:
    """Encode the pool: the posteriors' means, not yet scaled, `(n, 4, size / 8, size / 8)`.

    What is drawn otherwise is kept under a name of its own.
    """
    vae = vae.to(memory_format=torch.channels_last)
    targets = scenes(n)

    def encode(start: int, stop: int) -> Tensor:
        pixels = to_model(draw(targets[start:stop], size))
        with autocast():
            mean: Tensor = vae.encode(pixels).latent_dist.mean
        return mean.float().contiguous()

    return _each(n, encode, vae, out / f"{name}.pt")


@dataclass(frozen=True)
class ImageFeatures:
    """What the two adapters see of image prompts: `(n, projection)`, `(n, patches + 1, width)`."""

    embeddings: Tensor
    penultimate: Tensor


def image_features(
    encoder: CLIPVisionModelWithProjection, out: Path, n: int = PROMPTS
) -> ImageFeatures:
    """Draw, distort and encode the image prompts, in half precision."""
    shown = prompts(n)

    def encode(start: int, stop: int) -> Tensor:
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + start)
        pixels = augment.prompts(shown[start:stop], generator)
        with autocast():
            seen = encoder(pixels, output_hidden_states=True)
        return torch.cat([seen.image_embeds, seen.hidden_states[-2].flatten(1)], dim=1).half()

    joined = _each(n, encode, encoder, out / "features.pt")
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
    """Finds an image prompt for a target: another picture of the same object or paint."""

    def __init__(self, targets: Scenes, shown: Scenes) -> None:
        # What is left out of the number may be anything.
        everything = [(s.shape, s.colour, s.fill, s.background) for s in (targets, shown)]
        self._same = _Groups(*(world.combination(*four) for four in everything))
        objects = [(*four[:3], torch.zeros_like(four[0])) for four in everything]
        self._object = _Groups(*(world.combination(*four) for four in objects))
        paints = [(torch.zeros_like(four[0]), *four[1:]) for four in everything]
        self._paint = _Groups(*(world.combination(*four) for four in paints))

    def same_background(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Pick an image prompt for each target that shares all four attributes, `(n,)`."""
        return self._same.pick(rows, generator)

    def any_background(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Pick an image prompt for each target that shares shape, colour and fill, `(n,)`."""
        return self._object.pick(rows, generator)

    def any_shape(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Pick an image prompt for each target that shares colour, fill and background, `(n,)`."""
        return self._paint.pick(rows, generator)


class _Groups:
    """Rows of equal numbers, found in one look-up each; every number asked for must be there."""

    def __init__(self, asked: Tensor, kept: Tensor) -> None:
        self._asked = asked
        self._order = kept.argsort()
        self._count = kept.bincount(minlength=int(asked.max()) + 1)
        self._start = self._count.cumsum(0) - self._count

    def pick(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        number = self._asked[rows]
        random = torch.rand(len(rows), generator=generator)
        return self._order[self._start[number] + (random * self._count[number]).long()]
