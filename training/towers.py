"""The CLIP towers as one trainable module, and their loss.

Two text encoders as SDXL has, one image encoder, and the parts that only training needs: the first
text encoder's projection, the temperature, heads that read the attributes off the image embedding,
and projections like both adapters'.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from training import architecture, captions, drawing
from training.architecture import Architecture
from training.loop import autocast
from training.world import BACKGROUNDS, COLOURS, FILLS, SHAPES, Scenes, is_held_out

#: CLIP's own normalisation (openai/CLIP, the default of CLIPImageProcessor).
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)
VISION_SIZE: Final = 224
PATCH: Final = 32
#: Cells a patch's side is divided into where its share of the object's area is read.
CELLS: Final = 4
#: Weight of the area's loss: a mean over cells, most of which lie far from any edge, is small.
AREA: Final = 4.0
#: A logit that no softmax chooses.
NEVER: Final = -1e4
HEADS: Final = {
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "fill": len(FILLS),
    "background": len(BACKGROUNDS),
}


class Towers(nn.Module):
    """All three towers; `vocabulary` is the tokenizer's size."""

    def __init__(self, shape: Architecture, vocabulary: int) -> None:
        super().__init__()
        self.text_encoder = architecture.text_encoder(shape, vocabulary)
        self.text_encoder_2 = architecture.text_encoder_2(shape, vocabulary)
        self.image_encoder = architecture.image_encoder(shape)
        self.text_projection = nn.Linear(shape.text, shape.projection, bias=False)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.area = nn.Linear(shape.vision, CELLS**2)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(shape.projection, classes) for name, classes in HEADS.items()}
        )
        self.words = architecture.projection(shape, plus=False)
        self.words_plus = architecture.projection(shape, plus=True)

    def loss(
        self,
        pixels: Tensor,
        tokens: Tensor,
        named: Tensor,
        scenes: Scenes,
        said: Tensor | None = None,
    ) -> Tensor:
        """Contrast pictures with captions for both text encoders, and read off the attributes.

        `pixels` as from `see`, `tokens` `(batch, MAX_TOKENS)` of one caption a picture, `named` the
        attributes `(batch, 4)` those captions name. Every caption that is true of a picture is a
        right answer for it: a batch holds many such when captions leave parts out. A caption that
        would make a held-out pair of a picture counts neither way, or the towers would learn that
        there are no such pairs.

        `said` is what the text encoders say of each picture's full caption, `(batch, MAX_TOKENS,
        context)`; where it is given, the embedding and the penultimate features learn to be read
        by projections like the base adapter's and the Plus adapter's.
        """
        with autocast():
            seen = self.image_encoder(pixels, output_hidden_states=True)
        image, features = seen.image_embeds.float(), seen.hidden_states[-2].float()
        attributes = truth(scenes)
        true = true_of(named, attributes)
        excluded = ~true & pairs_up(named, attributes)
        total = self.read(image, scenes)
        total = total + AREA * self.outline(features, scenes)
        if said is not None:
            with autocast():
                plus = self.words_plus(features)
            total = total + functional.mse_loss(self.words(image), said[:, captions.SPOKEN])
            total = total + functional.mse_loss(plus.float(), said[:, captions.SPOKEN_PLUS])
        first = self.text_projection(self.text_encoder(tokens).pooler_output)
        second = self.text_encoder_2(tokens).text_embeds
        scale = self.scale.clamp(max=math.log(100)).exp()
        for text in (first, second):
            logits = functional.normalize(image) @ functional.normalize(text).T * scale
            logits = logits.masked_fill(excluded, NEVER)
            total = total + (_contrast(logits, true) + _contrast(logits.T, true.T)) / 4
        return total

    def read(self, image: Tensor, scenes: Scenes) -> Tensor:
        """Cross-entropy of the attribute heads on image embeddings, summed over the four.

        A shape held out with the picture's colour is no choice, nor the other way round.
        """
        logits = {name: head(image) for name, head in self.heads.items()}
        shapes, colours = torch.arange(len(SHAPES)), torch.arange(len(COLOURS))
        no_shape = is_held_out(scenes.colour[:, None], shapes[None])
        no_colour = is_held_out(colours[None], scenes.shape[:, None])
        logits["shape"] = logits["shape"].masked_fill(no_shape, NEVER)
        logits["colour"] = logits["colour"].masked_fill(no_colour, NEVER)
        losses = [functional.cross_entropy(x, getattr(scenes, n)) for n, x in logits.items()]
        return torch.stack(losses).sum()

    def outline(self, features: Tensor, scenes: Scenes) -> Tensor:
        """Cross-entropy of the object's area, read off each patch's penultimate features.

        It teaches the patches where the object's edges run, which the shapes are made of.
        """
        side = VISION_SIZE // PATCH
        cells = self.area(features[:, 1:]).unflatten(1, (side, side)).unflatten(3, (CELLS, CELLS))
        drawn = drawing.mask(scenes, side * CELLS)
        return functional.binary_cross_entropy_with_logits(
            cells.permute(0, 1, 3, 2, 4).reshape(drawn.shape), drawn
        )

    @torch.no_grad()
    def accuracy(self, pixels: Tensor, scenes: Scenes) -> dict[str, float]:
        """Share of pictures whose attribute the heads read right, an attribute each."""
        image = self.image_encoder(pixels).image_embeds
        return {
            name: (head(image).argmax(1) == getattr(scenes, name)).float().mean().item()
            for name, head in self.heads.items()
        }


def see(pixels: Tensor) -> Tensor:
    """Prepare uint8 pictures as CLIPImageProcessor does: bicubic to 224, CLIP's mean and std."""
    scaled = functional.interpolate(
        pixels.float() / 255, size=(VISION_SIZE, VISION_SIZE), mode="bicubic", antialias=True
    ).clamp(0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (scaled - mean) / std


def truth(scenes: Scenes) -> Tensor:
    """Stack the four attributes in the captions' order, `(n, 4)`."""
    return torch.stack([scenes.shape, scenes.colour, scenes.fill, scenes.background], dim=1)


def leave_out(attributes: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """Name each of the attributes `(n, 4)` with chance `keep` only."""
    kept = torch.rand(attributes.shape, generator=generator) < keep
    return torch.where(kept, attributes, captions.LEFT_OUT)


def true_of(named: Tensor, attributes: Tensor) -> Tensor:
    """Tell which captions are true of which pictures, `(pictures, captions)`, bool."""
    same = named[None] == attributes[:, None]
    return (same | (named[None] == captions.LEFT_OUT)).all(dim=2)


def pairs_up(named: Tensor, attributes: Tensor) -> Tensor:
    """Tell where caption and picture together make a held-out pair, `(pictures, captions)`."""
    shape, colour = named[None, :, 0], named[None, :, 1]
    by_shape = is_held_out(attributes[:, None, 1], shape) & (shape != captions.LEFT_OUT)
    by_colour = is_held_out(colour, attributes[:, None, 0]) & (colour != captions.LEFT_OUT)
    return by_shape | by_colour


def _contrast(logits: Tensor, true: Tensor) -> Tensor:
    targets = true.float() / true.sum(1, keepdim=True)
    return functional.cross_entropy(logits, targets)
