"""IP-Adapters of the public layout and the image encoders that they were trained with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from service.core.catalog import Adapter, BlockScales, Source
from service.core.errors import ConfigurationError
from service.core.param_types import IpTarget
from workers.engine.models import checks, hub
from workers.engine.models.layers import image_kv


@dataclass(frozen=True, slots=True, eq=False)
class ImageEncoder:
    """A CLIP vision tower, its preprocessing, and the SHA-256 of its weights."""

    model: CLIPVisionModelWithProjection
    processor: CLIPImageProcessorPil
    size: int
    fingerprint: str


@dataclass(frozen=True, slots=True, eq=False)
class IPAdapter:
    """Implements `base.ImageAdapter` for UNets.

    `base` reads the encoder's pooled embedding, the others its penultimate hidden states. `weights`
    are the layers that make K' and V' of every cross-attention.
    """

    kind: checks.AdapterKind
    encoder: ImageEncoder
    projection: Any
    weights: tuple[tuple[nn.Linear, nn.Linear], ...]
    scales: Mapping[IpTarget, tuple[float, ...]]
    """See `base.ImageAdapter`."""

    @property
    def encoder_fingerprint(self) -> str:
        """See `base.ImageAdapter`."""
        return self.encoder.fingerprint

    @property
    def encoder_dtype(self) -> torch.dtype:
        """See `base.ImageAdapter`."""
        dtype: torch.dtype = self.encoder.model.dtype
        return dtype

    @property
    def size(self) -> int:
        """See `base.ImageAdapter`."""
        return self.encoder.size

    @property
    def embedding_shape(self) -> tuple[int, ...]:
        """The shape of one image's encoder output: `(dim,)` pooled, or `(tokens, dim)`."""
        config = self.encoder.model.config
        if self.kind == "base":
            return (config.projection_dim,)
        return ((config.image_size // config.patch_size) ** 2 + 1, config.hidden_size)

    @property
    def networks(self) -> list[nn.Module]:
        """All of its networks."""
        return [
            self.encoder.model,
            self.projection,
            *(part for pair in self.weights for part in pair),
        ]

    def preprocess(self, picture: Image) -> Tensor:
        """See `base.ImageAdapter`."""
        pixels: Tensor = self.encoder.processor(picture, return_tensors="pt").pixel_values
        return pixels

    def encode(self, pixels: Tensor) -> Tensor:
        """See `base.ImageAdapter`."""
        pixels = pixels.to(self.encoder_dtype)
        output: Tensor
        if self.kind == "base":
            output = self.encoder.model(pixels).image_embeds
        else:
            output = self.encoder.model(pixels, output_hidden_states=True).hidden_states[-2]
        return output

    def unconditional(self) -> Tensor:
        """Zeros for `base`, the encoding of zero pixels otherwise, as in diffusers' pipelines."""
        like = next(self.encoder.model.parameters())
        if self.kind == "base":
            return torch.zeros(1, *self.embedding_shape).to(like)
        return self.encode(torch.zeros(1, 3, self.size, self.size).to(like))

    def kv(self, embeddings: Tensor) -> Tensor:
        """See `base.ImageAdapter`; `(images, tokens, width)`."""
        return image_kv(
            self.weights, self.projection(embeddings.to(self.weights[0][0].weight.dtype))
        )


class AdapterLoader:
    """Loads the adapters of one pipeline; an encoder that several of them name is loaded once."""

    def __init__(
        self, pipe: Any, dtype: torch.dtype, targets: Mapping[IpTarget, BlockScales]
    ) -> None:
        """`targets` are the blocks of each `ip_target` in this family."""
        self._pipe = pipe
        self._dtype = dtype
        self._targets = targets
        self._encoders: dict[str, ImageEncoder] = {}
        # The adapters' files number the cross-attentions by their index among all attentions.
        self._cross = {
            number: key
            for number, key in enumerate(pipe.unet.attn_processors)
            if key.endswith("attn2.processor")
        }

    def load(self, adapter: Adapter) -> IPAdapter:
        """Load one adapter. Raises `ConfigurationError` where its files do not fit the pipeline."""
        pipe, cross = self._pipe, self._cross
        subfolder = adapter.subfolder or ""
        name = hub.name_of(adapter, subfolder, adapter.weight_name)
        hub.check_safetensors(adapter.weight_name, f"adapter file {name}")
        header = checks.read_adapter(hub.find(adapter, subfolder, adapter.weight_name), name)
        source = hub.encoder_source(adapter)
        encoder_name = hub.name_of(source, source.subfolder or "")
        if encoder_name not in self._encoders:
            self._encoders[encoder_name] = _encoder(source, self._dtype)
        encoder = self._encoders[encoder_name]
        checks.check_encoder(header, encoder.model.config, encoder_name)
        widths = {
            number: pipe.unet.get_submodule(key.removesuffix(".processor")).to_k.out_features
            for number, key in cross.items()
        }
        checks.check_adapter(header, widths, pipe.unet)
        # The loader uses an encoder that is there already, wherever the adapter's files are.
        pipe.register_modules(image_encoder=encoder.model, feature_extractor=encoder.processor)
        hub.reading(
            f"adapter file {name}",
            pipe.load_ip_adapter,
            adapter.location,
            subfolder=subfolder,
            weight_name=adapter.weight_name,
            revision=adapter.revision,
        )
        wanted = {IpTarget.ALL: adapter.block_scales, **self._targets}
        scales = {target: self._scales(blocks, name) for target, blocks in wanted.items()}
        processors = pipe.unet.attn_processors
        weights = tuple(
            (processors[key].to_k_ip[0], processors[key].to_v_ip[0]) for key in cross.values()
        )
        projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        return IPAdapter(header.kind, encoder, projection, weights, scales)

    def _scales(self, blocks: BlockScales | None, name: str) -> tuple[float, ...]:
        """The scale of each cross-attention, as diffusers reads it from those of the blocks."""
        pipe = self._pipe
        if blocks is not None:
            checks.check_block_scales(blocks, name, pipe.unet)
        try:
            pipe.set_ip_adapter_scale(1.0 if blocks is None else blocks.model_dump())
        except ValueError as error:
            raise ConfigurationError(
                f"models.yaml: `block_scales` of adapter file {name} do not fit UNet "
                f"{checks.unet_name(pipe.unet)}: {error}"
            ) from error
        processors = pipe.unet.attn_processors
        return tuple(float(processors[key].scale[0]) for key in self._cross.values())


def _encoder(source: Source, dtype: torch.dtype) -> ImageEncoder:
    model = hub.load(CLIPVisionModelWithProjection, source, dtype)
    size = model.config.image_size
    processor = CLIPImageProcessorPil(size=size, crop_size=size)
    return ImageEncoder(model, processor, size, hub.fingerprint(model))
