"""The trained front of the adapter: image features become tokens beside the text's.

Parameter names are the public ones of h94/IP-Adapter (`image_proj.*`), so that a trained module's
state dict is the file's content.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Public loaders take the resampler's head width to be 64 and its depth to be four.
HEAD_DIM: Final = 64
DEPTH: Final = 4


class LinearProjection(nn.Module):
    """One linear layer and a layer norm: an image embedding to N tokens (paper, section 3.2.1).

    `(batch, embedding)` to `(batch, tokens, context)`.
    """

    def __init__(self, embedding: int, context: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Linear(embedding, tokens * context)
        self.norm = nn.LayerNorm(context)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the image tokens, `(batch, tokens, context)`."""
        tokens: Tensor = self.proj(embedding).unflatten(1, (self.tokens, -1))
        normed: Tensor = self.norm(tokens)
        return normed


class _Attention(nn.Module):
    """Queries read the image's features and each other, as Flamingo's perceiver does."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = heads * HEAD_DIM
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, features: Tensor, queries: Tensor) -> Tensor:
        features, queries = self.norm1(features), self.norm2(queries)
        keys, values = self.to_kv(torch.cat([features, queries], dim=1)).chunk(2, dim=-1)
        q, k, v = (
            part.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
            for part in (self.to_q(queries), keys, values)
        )
        # Not the fused attention: its backward pass in bfloat16 is slow on a CPU.
        read = functional.softmax(q @ k.transpose(-2, -1) / HEAD_DIM**0.5, dim=-1) @ v
        out: Tensor = self.to_out(read.transpose(1, 2).flatten(2))
        return out


class Resampler(nn.Module):
    """The Plus variant: queries resample the encoder's penultimate features into tokens.

    `(batch, patches + 1, features)` to `(batch, tokens, context)`.
    """

    def __init__(self, features: int, context: int, tokens: int, width: int, heads: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, tokens, width) / width**0.5)
        self.proj_in = nn.Linear(features, width)
        self.proj_out = nn.Linear(width, context)
        self.norm_out = nn.LayerNorm(context)
        self.layers = nn.ModuleList(
            nn.ModuleList([_Attention(width, heads), _feed_forward(width)]) for _ in range(DEPTH)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the image tokens, `(batch, tokens, context)`."""
        queries = self.latents.expand(len(features), -1, -1)
        features = self.proj_in(features)
        for layer in self.layers:
            attention, feed_forward = layer.children()
            queries = queries + attention(features, queries)
            queries = queries + feed_forward(queries)
        out: Tensor = self.norm_out(self.proj_out(queries))
        return out


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width, bias=False),
        nn.GELU(),
        nn.Linear(4 * width, width, bias=False),
    )
