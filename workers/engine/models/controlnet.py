"""ControlNets for UNets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor

from service.core.catalog import Source
from workers.engine.attention import Context, Kernel
from workers.engine.cache import Embedding
from workers.engine.models import checks, hub
from workers.engine.models.layers import (
    CrossAttention,
    control_forward,
    embed_map,
    install,
    kv_width,
    text_kv,
)

Embedder = Callable[[Any, Tensor, Embedding, tuple[int, int]], Tensor]
"""A family's time embeddings with the weights of a network: network, timesteps, text, size."""


@dataclass(frozen=True, slots=True, eq=False)
class UNetControlNet:
    """Implements `base.ControlNet`: diffusers' `ControlNetModel` and its cross-attentions."""

    model: ControlNetModel
    layers: tuple[CrossAttention, ...]
    embedder: Embedder
    text_shape: tuple[int, int]
    """Tokens and width of the text embeddings."""

    def text_kv(self, text: Embedding) -> Tensor:
        """See `base.ControlNet`."""
        return text_kv(self.layers, text["tokens"])

    def time_embeddings(self, timesteps: Tensor, text: Embedding, size: tuple[int, int]) -> Tensor:
        """See `base.ControlNet`."""
        return self.embedder(self.model, timesteps, text, size)

    def embed_map(self, picture: Tensor) -> Tensor:
        """See `base.ControlNet`."""
        return embed_map(self.model, picture)

    def residuals(
        self, sample: Tensor, emb: Tensor, context: Context, hint: Tensor, scale: Tensor
    ) -> list[Tensor]:
        """See `base.ControlNet`."""
        return control_forward(self.model, sample, emb, context, hint, scale)

    def blank_hint(self, count: int, height: int, width: int) -> Tensor:
        """See `base.ControlNet`."""
        channels = self.model.config.block_out_channels[0]
        return self._zeros(count, channels, height, width)

    def blank_context(self, count: int) -> Context:
        """See `base.ControlNet`."""
        return Context(self._zeros(count, self.text_shape[0], kv_width(self.layers)))

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.model.dtype, device=self.model.device)


def load(
    source: Source,
    unet: Any,
    dtype: torch.dtype,
    kernel: Kernel,
    *,
    embedder: Embedder,
    text_shape: tuple[int, int],
) -> UNetControlNet:
    """Load a ControlNet. Raises `ConfigurationError` where it does not fit the UNet."""
    name = hub.name_of(source, source.subfolder or "")
    hub.check_folder(source, "a ControlNet")
    model = hub.load(ControlNetModel, source, dtype)
    checks.check_controlnet(model, name, unet)
    return UNetControlNet(model, install(model, kernel, name=name), embedder, text_shape)
