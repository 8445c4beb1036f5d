"""ControlNets for UNets, and T2I-Adapters (arXiv 2302.08453), which run once a job."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, T2IAdapter
from PIL import Image
from torch import Tensor

from service.core.catalog import ControlNetSource, Source
from service.core.errors import ConfigurationError
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
    union_hint,
    union_mode,
)

UNION_NAMES: Final = (ControlNetUnionModel.__name__, "ControlNetModel_Union")
"""What configurations call a union ControlNet, if not a ControlNet like any other."""
Embedder = Callable[[Any, Tensor, Embedding, tuple[int, int]], Tensor]
"""A family's time embeddings with the weights of a network: network, timesteps, text, size."""


@dataclass(frozen=True, slots=True, eq=False)
class UNetControlNet:
    """Implements `base.ControlNet`: diffusers' `ControlNetModel` and its cross-attentions.

    Of a `ControlNetUnionModel` it is one type of map, `mode`; all of them share its weights.
    """

    model: ControlNetModel | ControlNetUnionModel
    layers: tuple[CrossAttention, ...]
    embedder: Embedder
    text_shape: tuple[int, int]
    """Tokens and width of the text embeddings."""
    mode: int | None = None

    def text_kv(self, text: Embedding) -> Tensor:
        """See `base.ControlNet`."""
        return text_kv(self.layers, text["tokens"])

    def time_embeddings(self, timesteps: Tensor, text: Embedding, size: tuple[int, int]) -> Tensor:
        """See `base.ControlNet`."""
        times = self.embedder(self.model, timesteps, text, size)
        return times if self.mode is None else times + union_mode(self.model, self.mode)

    def embed_map(self, picture: Tensor) -> Tensor:
        """See `base.ControlNet`."""
        hint = embed_map(self.model, picture)
        return hint if self.mode is None else union_hint(self.model, hint, self.mode)

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


class ControlNetLoader:
    """Loads the ControlNets of one UNet; a union that several types name is loaded once."""

    def __init__(
        self,
        unet: Any,
        dtype: torch.dtype,
        kernel: Kernel,
        *,
        embedder: Embedder,
        text_shape: tuple[int, int],
    ) -> None:
        self._unet = unet
        self._dtype = dtype
        self._kernel = kernel
        self._embedder = embedder
        self._text_shape = text_shape
        self._loaded: dict[str, tuple[Any, tuple[CrossAttention, ...]]] = {}

    def load(self, source: ControlNetSource) -> UNetControlNet:
        """Load one. Raises `ConfigurationError` where it does not fit the UNet or its mode."""
        name = hub.name_of(source, source.subfolder or "")
        hub.check_folder(source, "a ControlNet")
        mode = source.control_mode
        if name not in self._loaded:
            model = self._network(source, name)
            checks.check_controlnet(model, name, self._unet)
            self._loaded[name] = model, install(model, self._kernel, name=name)
        model, layers = self._loaded[name]
        if (mode is not None) != isinstance(model, ControlNetUnionModel):
            raise ConfigurationError(f"{name} is named with a `control_mode` and without one")
        if mode is not None and mode >= model.config.num_control_type:
            raise ConfigurationError(
                f"`control_mode` {mode} of {name}: it has {model.config.num_control_type} modes, "
                "counted from 0"
            )
        return UNetControlNet(model, layers, self._embedder, self._text_shape, mode)

    def _network(self, source: ControlNetSource, name: str) -> Any:
        if source.control_mode is not None:
            names = (*UNION_NAMES, ControlNetModel.__name__)
            return hub.load(ControlNetUnionModel, source, self._dtype, also=names)
        declared = hub.read_json(source, source.subfolder or "", "config.json").get("_class_name")
        if declared in UNION_NAMES:
            raise ConfigurationError(
                f"{name} is a {declared}: give the `control_mode` of each type of map that it is "
                "to be served for"
            )
        return hub.load(ControlNetModel, source, self._dtype)


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
