"""ControlNets for UNets, and T2I-Adapters (arXiv 2302.08453), which run once a job."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, T2IAdapter
from PIL import Image
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


def load_controlnet(
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


@dataclass(frozen=True, slots=True, eq=False)
class UNetT2IAdapter:
    """Implements `base.T2IAdapter`."""

    model: T2IAdapter

    def preprocess(self, picture: Image.Image, height: int, width: int) -> Tensor:
        """See `base.T2IAdapter`; as diffusers' T2I-Adapter pipelines do it."""
        grey = self.model.config.in_channels == 1
        factor = self.model.downscale_factor
        # Rounded up to what it divides, the features have the sizes of the UNet's levels.
        width, height = (-(-side // factor) * factor for side in (width, height))
        resized = picture.convert("L" if grey else "RGB").resize(
            (width, height), Image.Resampling.LANCZOS
        )
        pixels = np.asarray(resized, dtype=np.float32).reshape(height, width, -1) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1)[None]

    def features(self, picture: Tensor) -> list[Tensor]:
        """See `base.T2IAdapter`."""
        features: list[Tensor] = self.model(picture)
        return features


def load_t2i_adapter(source: Source, unet: torch.nn.Module, dtype: torch.dtype) -> UNetT2IAdapter:
    """Load a T2I-Adapter. Raises `ConfigurationError` where it does not fit the UNet."""
    name = hub.name_of(source, source.subfolder or "")
    hub.check_folder(source, "a T2I-Adapter")
    model = hub.load(T2IAdapter, source, dtype)
    checks.check_t2i_adapter(model, name, unet)
    return UNetT2IAdapter(model)
