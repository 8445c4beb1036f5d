"""One model of `models.yaml`, loaded through diffusers' own loaders and checked.

All its adapters and ControlNets stay loaded side by side. It knows nothing of rows and jobs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionXLPipeline
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from service.core.catalog import Adapter, BlockScales, ModelEntry, Source
from service.core.errors import ConfigurationError
from workers.engine.attention import Kernel
from workers.engine.models import checks, hub
from workers.engine.models.checks import BASE_TOKENS
from workers.engine.models.layers import CrossAttention, image_memory, install


@dataclass(frozen=True, slots=True, eq=False)
class ImageEncoder:
    """A CLIP vision tower, its preprocessing, and the SHA-256 of its weights."""

    model: CLIPVisionModelWithProjection
    processor: CLIPImageProcessor
    size: int
    fingerprint: str


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAdapter:
    """One IP-Adapter: its encoder, its projection, and K' and V' of every cross-attention.

    `base` reads the encoder's pooled embedding, `plus` its penultimate hidden states.
    """

    kind: Literal["base", "plus"]
    encoder: ImageEncoder
    projection: Any
    weights: tuple[tuple[nn.Linear, nn.Linear], ...]
    scales: tuple[float, ...]
    """What `ip_scale` is multiplied with in each cross-attention."""

    @property
    def tokens(self) -> int:
        """Tokens that one image becomes."""
        if self.kind == "base":
            return BASE_TOKENS
        return int(self.projection.latents.shape[1])

    @property
    def embedding_shape(self) -> tuple[int, ...]:
        """The shape of one image's encoder output: `(dim,)` pooled, or `(tokens, dim)`."""
        config = self.encoder.model.config
        if self.kind == "base":
            return (config.projection_dim,)
        return ((config.image_size // config.patch_size) ** 2 + 1, config.hidden_size)

    def encode(self, pixels: Tensor) -> Tensor:
        """Run the encoder over `(images, 3, size, size)`; `(images, *embedding_shape)`."""
        pixels = pixels.to(self.encoder.model.dtype)
        output: Tensor
        if self.kind == "base":
            output = self.encoder.model(pixels).image_embeds
        else:
            output = self.encoder.model(pixels, output_hidden_states=True).hidden_states[-2]
        return output

    def nothing(self, pixels: Tensor) -> Tensor:
        """The encoder output that stands for no image, as diffusers' pipelines have it.

        Zeros for `base`; for `plus` the encoding of `pixels`, which must be zeros.
        """
        if self.kind == "base":
            return torch.zeros(1, *self.embedding_shape).to(pixels)
        return self.encode(pixels)

    def memory(self, embeddings: Tensor) -> Tensor:
        """K' and V' of every layer from encoder outputs, `(images, ...)`.

        Returns `(images, tokens, width)`, see `attention.Context.image`.
        """
        return image_memory(self.weights, self.projection(embeddings))


@dataclass(frozen=True, slots=True, eq=False)
class LoadedControlNet:
    """One ControlNet and its cross-attentions."""

    model: ControlNetModel
    layers: tuple[CrossAttention, ...]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """An SDXL-shaped base with everything that serves it, on its device."""

    name: str
    entry: ModelEntry
    pipe: StableDiffusionXLPipeline
    layers: tuple[CrossAttention, ...]
    adapters: Mapping[str, LoadedAdapter]
    controlnets: Mapping[str, LoadedControlNet]
    text_fingerprint: str
    """The SHA-256 of the weights of both text encoders."""
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def control_processor(self) -> VaeImageProcessor:
        """Preprocessing of ControlNet maps, as in diffusers' ControlNet pipeline."""
        return VaeImageProcessor(
            vae_scale_factor=self.pipe.vae_scale_factor, do_convert_rgb=True, do_normalize=False
        )

    @property
    def unet(self) -> Any:
        """The UNet with our attention layers."""
        return self.pipe.unet

    @property
    def vae(self) -> Any:
        """The VAE; float32 where its configuration says that it overflows in float16."""
        return self.pipe.vae


def load_model(
    name: str,
    entry: ModelEntry,
    *,
    device: torch.device,
    kernel: Kernel,
    on_stage: Callable[[str], None],
) -> LoadedModel:
    """Load one model: float16 on CUDA, float32 on a CPU.

    Raises `ConfigurationError` where files are missing or do not fit together.
    """
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    on_stage(f"loading {name}: base")
    pipe = _base(name, entry, dtype)
    checks.check_unet(pipe.unet, pipe.vae)
    cross = {
        number: key
        for number, key in enumerate(pipe.unet.attn_processors)
        if key.endswith("attn2.processor")
    }
    encoders: dict[str, ImageEncoder] = {}
    adapters: dict[str, LoadedAdapter] = {}
    for adapter_name, adapter in entry.adapters.items():
        on_stage(f"loading {name}: adapter {adapter_name}")
        adapters[adapter_name] = _adapter(pipe, adapter, cross, encoders, dtype)
    pipe.unet.encoder_hid_proj = None
    layers = install(pipe.unet, kernel, name=checks.unet_name(pipe.unet))
    controlnets: dict[str, LoadedControlNet] = {}
    for control_name, source in entry.controlnets.items():
        on_stage(f"loading {name}: ControlNet {control_name}")
        controlnets[control_name] = _controlnet(source, pipe.unet, dtype, kernel)
    text = hub.fingerprint(
        pipe.text_encoder, pipe.text_encoder_2, tokenizers=(pipe.tokenizer, pipe.tokenizer_2)
    )
    model = LoadedModel(name, entry, pipe, layers, adapters, controlnets, text, device, dtype)
    _place(model)
    return model


def _base(name: str, entry: ModelEntry, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    hub.check_folder(entry.base, f"the base of {name}")
    if entry.base.subfolder is not None:
        raise ConfigurationError(f"the base of {name} has a `subfolder`; a pipeline has none")
    hub.find(entry.base, "model_index.json")
    arguments = hub.loader_arguments(entry.base) | {"dtype": dtype}
    if entry.vae is not None:
        hub.check_folder(entry.vae, f"the VAE of {name}")
        arguments["vae"] = _loaded(AutoencoderKL, entry.vae, dtype)
    return _from_pretrained(
        StableDiffusionXLPipeline, entry.base, arguments | {"add_watermarker": False}
    )


def _adapter(
    pipe: StableDiffusionXLPipeline,
    adapter: Adapter,
    cross: Mapping[int, str],
    encoders: dict[str, ImageEncoder],
    dtype: torch.dtype,
) -> LoadedAdapter:
    subfolder = adapter.subfolder or ""
    name = hub.name_of(adapter, subfolder, adapter.weight_name)
    if not adapter.weight_name.endswith(".safetensors"):
        raise ConfigurationError(f"adapter file {name} is not a .safetensors file")
    header = checks.read_adapter(hub.find(adapter, subfolder, adapter.weight_name), name)
    source = hub.encoder_source(adapter)
    encoder_name = hub.name_of(source, source.subfolder or "")
    if encoder_name not in encoders:
        encoders[encoder_name] = _encoder(source, dtype)
    encoder = encoders[encoder_name]
    checks.check_encoder(header, encoder.model.config, encoder_name)
    widths = {
        number: pipe.unet.get_submodule(key.removesuffix(".processor")).to_k.out_features
        for number, key in cross.items()
    }
    checks.check_adapter(header, widths, pipe.unet)
    # The loader takes an encoder that is there already, whatever the adapter's place is.
    pipe.register_modules(image_encoder=encoder.model, feature_extractor=encoder.processor)
    pipe.load_ip_adapter(
        adapter.location,
        subfolder=subfolder,
        weight_name=adapter.weight_name,
        revision=adapter.revision,
    )
    if adapter.block_scales is not None:
        _scale_blocks(pipe, adapter.block_scales, name)
    processors = pipe.unet.attn_processors
    scales = tuple(float(processors[key].scale[0]) for key in cross.values())
    weights = tuple(
        (processors[key].to_k_ip[0], processors[key].to_v_ip[0]) for key in cross.values()
    )
    projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
    return LoadedAdapter(header.kind, encoder, projection, weights, scales)


def _scale_blocks(pipe: StableDiffusionXLPipeline, scales: BlockScales, name: str) -> None:
    checks.check_block_scales(scales, name, pipe.unet)
    try:
        pipe.set_ip_adapter_scale(scales.model_dump())
    except ValueError as error:
        raise ConfigurationError(
            f"models.yaml: `block_scales` of adapter file {name} do not fit UNet "
            f"{checks.unet_name(pipe.unet)}: {error}"
        ) from error


def _encoder(source: Source, dtype: torch.dtype) -> ImageEncoder:
    hub.find(source, source.subfolder or "", "config.json")
    model = _loaded(CLIPVisionModelWithProjection, source, dtype)
    size = model.config.image_size
    processor = CLIPImageProcessor(size=size, crop_size=size)
    return ImageEncoder(model, processor, size, hub.fingerprint(model))


def _controlnet(source: Source, unet: Any, dtype: torch.dtype, kernel: Kernel) -> LoadedControlNet:
    name = hub.name_of(source, source.subfolder or "")
    hub.check_folder(source, "a ControlNet")
    model = _loaded(ControlNetModel, source, dtype)
    checks.check_controlnet(model, name, unet)
    return LoadedControlNet(model, install(model, kernel, name=name))


def _loaded(kind: Any, source: Source, dtype: torch.dtype) -> Any:
    return _from_pretrained(kind, source, hub.loader_arguments(source) | {"dtype": dtype})


def _from_pretrained(kind: Any, source: Source, arguments: dict[str, Any]) -> Any:
    try:
        return kind.from_pretrained(source.location, **arguments)
    except (OSError, ValueError, KeyError) as error:
        name = hub.name_of(source, source.subfolder or "")
        raise ConfigurationError(f"{kind.__name__} could not be loaded from {name}: {error}") from (
            error
        )


def _place(model: LoadedModel) -> None:
    pipe = model.pipe
    pipe.set_progress_bar_config(disable=True)
    if pipe.vae.config.force_upcast and model.dtype == torch.float16:
        pipe.vae.to(dtype=torch.float32)
    networks: list[nn.Module] = [pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2]
    for adapter in model.adapters.values():
        networks += [adapter.encoder.model, adapter.projection]
        networks += [part for pair in adapter.weights for part in pair]
    networks += [control.model for control in model.controlnets.values()]
    for network in networks:
        network.requires_grad_(requires_grad=False)
        network.eval().to(model.device)
    for network in (pipe.unet, pipe.vae, *(c.model for c in model.controlnets.values())):
        network.to(memory_format=torch.channels_last)
