"""Stage 4: the IP-Adapter by the paper (sections 3.2 and 3.3), base or Plus.

Everything is frozen but the projection and K', V'. It needs stages 1 to 3 and leaves them as they
are. Four deviations, all explained in docs/model.md: the image prompt is another picture of the
target's object, not the target itself; the projection begins as stage 2b's, whose tokens equal the
caption's; some image prompts act in the style block alone; and the learning rate is ten times the
paper's, for a training of minutes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from training import (
    architecture,
    captions,
    clip,
    decoupled,
    diffusion,
    pool,
    unet,
    vae,
    vision,
)
from training.architecture import Architecture
from training.loop import Budget, Loop, autocast
from training.pool import TextFeatures, Views
from training.towers import leave_out, truth
from training.world import Scenes

#: Chances of dropping the text, the image and both (paper, section 4.1.2).
DROP: Final = 0.05
#: Share of image prompts on any background, beside a text that names the target's. An image on
#: another background without such a text teaches the adapter to ignore backgrounds.
ELSEWHERE: Final = 0.4
#: Share of image prompts without any text.
ALONE: Final = 0.45
KEEP: Final = 0.4
#: Share of image prompts that show another shape and act in `STYLE_BLOCK` alone; their text names
#: the target's shape with this chance, and nothing else.
STYLE: Final = 0.12
SHAPE_NAMED: Final = 0.8
#: The block that sets the paint of this UNet. SDXL's (InstantStyle, arXiv 2404.02733) is
#: `up_blocks.0.attentions.1`, which carries neither colour nor background here.
STYLE_BLOCK: Final = "up_blocks.1."


class Adapter(nn.Module):
    """All that is trained: the projection, and K', V' of every cross-attention of `model`."""

    def __init__(self, model: UNet2DConditionModel, shape: Architecture, *, plus: bool) -> None:
        super().__init__()
        model.requires_grad_(requires_grad=False)
        self.plus = plus
        self.name = "adapter-plus" if plus else "adapter"
        self.projection = architecture.projection(shape, plus=plus)
        self.attentions = decoupled.attach(model, architecture.image_tokens(shape, plus=plus))
        names = list(model.attn_processors)
        self._in_style_block = {
            place: names[int(place)].startswith(STYLE_BLOCK) for place in self.attentions
        }

    def act_in_style_block(self, style: Tensor, absent: Tensor | None = None) -> None:
        """Let image tokens act in the style block alone where `style`, `(n,)` bool, tells.

        Where `absent` tells, they act nowhere.
        """
        present = torch.ones_like(style) if absent is None else ~absent
        for place, attention in self.attentions.items():
            acts = present if self._in_style_block[place] else present & ~style
            attention.scale = acts.float()[:, None, None, None]

    def join(self, text: unet.Conditions, image: Tensor) -> unet.Conditions:
        """Put the image's tokens behind the text's."""
        return replace(text, context=torch.cat([text.context, self.projection(image)], dim=1))


@dataclass(frozen=True)
class Prompts:
    """What a batch is conditioned on: numbers of sentences and of the pool's image prompts.

    `no_image` and `style` tell where the image is dropped, and where it acts in the style block
    alone; all `(n,)`.
    """

    sentences: Tensor
    images: Tensor
    no_image: Tensor
    style: Tensor


def choose(scenes: Scenes, rows: Tensor, views: Views, generator: torch.Generator) -> Prompts:
    """Choose a text and an image prompt for each of the pool's `rows`."""
    n = len(rows)
    kind, drop, short, aim = (torch.rand(n, generator=generator) for _ in range(4))
    elsewhere, alone = kind < ELSEWHERE, kind >= 1 - ALONE
    images = torch.where(
        elsewhere,
        views.any_background(rows, generator),
        views.same_background(rows, generator),
    )
    target = truth(scenes[rows])
    named = leave_out(target, KEEP, generator)
    named[elsewhere, 3] = target[elsewhere, 3]
    sentences = clip.numbers(named)
    setting = elsewhere & (short < 0.6)
    sentences[setting] = captions.FIRST_SETTING + target[setting, 3]
    sentences[alone] = captions.EMPTY
    style = aim < STYLE
    images = torch.where(style, views.any_shape(rows, generator), images)
    shape_only = torch.full_like(target, captions.LEFT_OUT)
    shape_only[:, 0] = target[:, 0]
    named_shape = torch.where(short < SHAPE_NAMED, clip.numbers(shape_only), captions.EMPTY)
    sentences = torch.where(style, named_shape, sentences)
    # In thirds: no text, no image, neither. Half of the texts left out are zeros, half "".
    sentences[drop < DROP] = captions.EMPTY
    neither = (drop >= 2 * DROP) & (drop < 3 * DROP)
    sentences[neither] = torch.where(short[neither] < 0.7, pool.ZEROS, captions.EMPTY)
    return Prompts(sentences, images, (drop >= DROP) & (drop < 3 * DROP), style)


@dataclass(frozen=True)
class Frozen:
    """The earlier stages' work, read once, with scaled `latents` and `images` of the pool.

    `words` is the projection that was trained beside the image encoder to equal captions'
    text features. K' and V' begin as copies of the text's, so the UNet can read such tokens.
    `no_image` is the feature that stands for a dropped image: zeros for the base (paper, section
    3.3), the encoder's features of an all-zero input for Plus, as public pipelines feed them.
    """

    unet: UNet2DConditionModel
    latents: Tensor
    text: TextFeatures
    images: Tensor
    no_image: Tensor
    words: nn.Module


def train(model: Adapter, frozen: Frozen, budget: Budget, out: Path, seed: int = 0) -> Adapter:
    """Train `model`, which is attached to the frozen UNet, and return it averaged."""
    size = architecture.SHAPES.size
    loop = Loop(model.name, model, budget, out)
    if not loop.seconds:
        model.projection.load_state_dict(frozen.words.state_dict())
        loop.restart_average()
    # The plain half of the pool: an image prompt does not tell its proportions.
    plain = frozen.latents[: pool.PLAIN]
    scenes = pool.scenes(len(plain))
    views = Views(scenes, pool.prompts(len(frozen.images)))

    def step(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        rows = torch.randint(len(plain), (unet.BATCH,), generator=generator)
        prompts = choose(scenes, rows, views, generator)
        seen = frozen.images[prompts.images].float()
        seen[prompts.no_image] = frozen.no_image
        noised = diffusion.noise(plain[rows], generator)
        model.act_in_style_block(prompts.style)
        with autocast():
            conditioning = model.join(unet.conditions(frozen.text, prompts.sentences, size), seen)
            prediction = conditioning.predict(frozen.unet, noised)
        return noised.loss(prediction)

    loop.run(step)
    loop.averaged()
    return model.eval()


def load(out: Path, frozen: UNet2DConditionModel, *, plus: bool) -> Adapter:
    """Attach the averaged adapter of a checkpoint to `frozen`."""
    model = Adapter(frozen, architecture.SHAPES, plus=plus)
    Loop(model.name, model, Budget(0, 0, ema=1), out).averaged()
    return model.eval()


def frozen_parts(out: Path, *, plus: bool) -> Frozen:
    """Read stages 1 to 3 from `out`, and compute or read the pool's features."""
    size = architecture.SHAPES.size
    towers = vision.load(out)
    autoencoder = vae.load(out)
    features = pool.image_features(towers.image_encoder, out)
    images = features.penultimate if plus else features.embeddings
    none = torch.zeros(images.shape[1:])
    if plus:
        blank = torch.zeros(1, 3, 224, 224)
        with torch.no_grad():
            seen = towers.image_encoder(blank, output_hidden_states=True)
        none = seen.hidden_states[-2][0]
    latents = pool.latents(autoencoder, out, size) * autoencoder.config.scaling_factor
    text = pool.text_features(towers, clip.sentence_tokens())
    words = towers.words_plus if plus else towers.words
    return Frozen(unet.load(out), latents, text, images, none, words)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, help="in all, resumed or not (14; Plus 20)")
    parser.add_argument("--out", type=Path, default=Path("work"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plus", action="store_true", help="the resampler over patch features")
    given = parser.parse_args()
    read = frozen_parts(given.out, plus=given.plus)
    torch.manual_seed(given.seed)
    trained = Adapter(read.unet, architecture.SHAPES, plus=given.plus)
    minutes = given.minutes or (20 if given.plus else 14)
    learning = Budget(minutes, 1e-3, ema=0.998, warmup_steps=100)
    train(trained, read, learning, given.out, given.seed)
