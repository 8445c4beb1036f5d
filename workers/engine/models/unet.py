"""What the families around diffusers' UNet2DConditionModel share: loading, prediction, VAE.

All adapters and ControlNets of a model stay loaded side by side.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, ClassVar, Final, Self

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from service.core.catalog import BlockScales, Checkpoint, ModelEntry
from service.core.errors import ConfigurationError
from service.core.param_types import IpTarget
from workers.engine import schedulers
from workers.engine.attention import Context, ImageContext, Kernel
from workers.engine.cache import Embedding, Layout
from workers.engine.models import (
    checks,
    depth,
    hub,
    lora,
    prompts,
    single_file,
)
from workers.engine.models.adapter import AdapterLoader, IPAdapter
from workers.engine.models.base import MapPreprocessor
from workers.engine.models.controlnet import (
    ControlNetLoader,
    UNetControlNet,
    UNetT2IAdapter,
    load_t2i_adapter,
)
from workers.engine.models.layers import CrossAttention, install, kv_width, text_kv, unet_forward
from workers.engine.models.lora import LoraWeights
from workers.engine.models.prompts import Prompt, TokenWeights

_TOKENIZING: Final = Lock()
"""A tokenizer of the tokenizers library must not be used by two threads at once."""


@dataclass(eq=False)
class UNetModel:
    """Implements `base.Model` around a diffusers pipeline; a family adds what is its own."""

    name: str
    entry: ModelEntry
    pipe: Any
    layers: tuple[CrossAttention, ...]
    adapters: Mapping[str, IPAdapter]
    controlnets: Mapping[str, UNetControlNet]
    t2i_adapters: Mapping[str, UNetT2IAdapter]
    depth_estimator: MapPreprocessor | None
    loras: Mapping[str, LoraWeights]
    text_fingerprint: str
    device: torch.device
    dtype: torch.dtype

    pipeline: ClassVar[Any]
    """The family's pipeline class in diffusers."""
    pipeline_arguments: ClassVar[Mapping[str, Any]] = {}
    """What its loader is told beside the source and the dtype."""
    parts: ClassVar[Mapping[str, Any]] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    """The class of each network of the pipeline."""
    tokenizers: ClassVar[Sequence[str]]
    """Names of the pipeline's tokenizers, in the order of `text_encoders`."""

    @classmethod
    @abstractmethod
    def check(cls, config: Mapping[str, Any], name: str) -> None:
        """Raise `ConfigurationError` where a UNet's configuration is not of this family."""

    @staticmethod
    @abstractmethod
    def text_encoders(pipe: Any) -> tuple[list[Any], list[Any]]:
        """The text encoders of a pipeline and their tokenizers."""

    @staticmethod
    @abstractmethod
    def embed_times(net: Any, timesteps: Tensor, text: Embedding, size: tuple[int, int]) -> Tensor:
        """As `base.Model.time_embeddings`, with the weights of `net`."""

    @staticmethod
    @abstractmethod
    def ip_targets(unet: Any) -> Mapping[IpTarget, BlockScales]:
        """The blocks in which an image prompt acts, for each `ip_target` but `all`."""

    @abstractmethod
    def text_layout(self, chunks: int) -> Layout:
        """See `base.Model`."""

    @property
    @abstractmethod
    def zero_negative(self) -> bool:
        """See `base.Model`."""

    @property
    @abstractmethod
    def max_clip_skip(self) -> int:
        """See `base.Model`."""

    @abstractmethod
    def encode_plain(self, text: str, clip_skip: int) -> Embedding:
        """Encode a text of one chunk through the pipeline."""

    @abstractmethod
    def encode_ids(self, ids: Sequence[Tensor], clip_skip: int) -> Embedding:
        """The same from token ids for each text encoder, `(1, tokens)`."""

    def prompt(self, text: str) -> Prompt:
        """See `base.Model`."""
        with _TOKENIZING:
            return prompts.parse(text, self.text_encoders(self.pipe)[1])

    def encode_text(self, prompt: Prompt, clip_skip: int) -> Embedding:
        """See `base.Model`; pooled texts are those of the first chunk."""
        if not prompt.chunks:
            return self.encode_plain(prompt.text, clip_skip)
        empty = [prompts.chunk(tokenizer) for tokenizer in self.text_encoders(self.pipe)[1]]
        nothing = self._encode_chunk(empty, clip_skip)["tokens"]
        encoded = []
        for chunk in prompt.chunks:
            embedding = self._encode_chunk(chunk, clip_skip)
            weights = torch.tensor(chunk[0][1]).to(nothing)[None, :, None]
            # Weights go from the empty text through the word itself and beyond.
            tokens = nothing + weights * (embedding["tokens"] - nothing)
            encoded.append({**embedding, "tokens": tokens})
        joined = torch.cat([embedding["tokens"] for embedding in encoded], dim=1)
        return {**encoded[0], "tokens": joined}

    def _encode_chunk(self, chunk: Sequence[TokenWeights], clip_skip: int) -> Embedding:
        ids = [torch.tensor([tokens], device=self.device) for tokens, _ in chunk]
        return self.encode_ids(ids, clip_skip)

    @property
    def unet(self) -> Any:
        """The UNet with this engine's attention layers."""
        return self.pipe.unet

    @property
    def vae(self) -> Any:
        """The VAE; float32 where its configuration says that it overflows in float16."""
        return self.pipe.vae

    @property
    def latent_channels(self) -> int:
        """See `base.Model`."""
        return int(self.vae.config.latent_channels)

    @property
    def input_channels(self) -> int:
        """See `base.Model`."""
        return int(self.unet.config.in_channels)

    @property
    def scale_factor(self) -> int:
        """See `base.Model`."""
        return int(self.pipe.vae_scale_factor)

    @property
    def scheduler_config(self) -> Any:
        """See `base.Model`; as the base has it, but for what models.yaml says otherwise."""
        config = dict(self.pipe.scheduler.config)
        given = self.entry.scheduler_config.model_dump(exclude_none=True)
        # diffusers passes over values that a configuration lists as its class's defaults.
        defaults = [key for key in config.get("_use_default_values", ()) if key not in given]
        return {**config, **given, "_use_default_values": defaults}

    @property
    def networks(self) -> Sequence[nn.Module]:
        """See `base.Model`."""
        controls = (control.model for control in self.controlnets.values())
        return [self.unet, *dict.fromkeys(controls)]  # types of a union share one

    def text_kv(self, text: Embedding) -> Tensor:
        """See `base.Model`."""
        return text_kv(self.layers, text["tokens"])

    def time_embeddings(self, timesteps: Tensor, text: Embedding, size: tuple[int, int]) -> Tensor:
        """See `base.Model`."""
        return self.embed_times(self.unet, timesteps, text, size)

    def predict(
        self,
        sample: Tensor,
        emb: Tensor,
        context: Context,
        residuals: Sequence[Tensor] | None,
        features: Sequence[Tensor] | None,
    ) -> Tensor:
        """See `base.Model`."""
        return unet_forward(self.unet, sample, emb, context, residuals, features)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See `base.Model`."""
        latents = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
        mean, deviation = latents.mean, latents.std
        config = self.vae.config
        if config.latents_mean is not None and config.latents_std is not None:
            shift, spread = (
                torch.tensor(each).view(1, -1, 1, 1).to(mean)
                for each in (config.latents_mean, config.latents_std)
            )
            mean, deviation = (mean - shift) / spread, deviation / spread
        return (
            (mean * config.scaling_factor).to(self.dtype),
            (deviation * config.scaling_factor).to(self.dtype),
        )

    def decode(self, latents: Tensor) -> Tensor:
        """See `base.Model`."""
        decoded: Tensor = self.vae.decode(self._unscaled(latents), return_dict=False)[0]
        return decoded

    def decode_tiled(self, latents: Tensor, side: int) -> Tensor:
        """See `base.Model`."""
        vae: Any = self.vae
        vae.tile_latent_min_size = side
        vae.tile_sample_min_size = side * self.scale_factor
        decoded: Tensor = vae.tiled_decode(self._unscaled(latents), return_dict=False)[0]
        return decoded

    def blank_emb(self, count: int) -> Tensor:
        """See `base.Model`."""
        return self._zeros(count, self.unet.time_embedding.linear_2.out_features)

    def blank_context(self, count: int, image_tokens: int) -> Context:
        """See `base.Model`."""
        width = kv_width(self.layers)
        text = self._zeros(count, self.text_layout(1)["tokens"][1], width)
        if not image_tokens:
            return Context(text)
        image = self._zeros(count, image_tokens, width)
        return Context(text, (ImageContext(image, self._zeros(count, len(self.layers))),))

    def _unscaled(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        latents = latents.to(self.vae.dtype)
        mean, std = config.latents_mean, config.latents_std
        unscaled: Tensor = latents / config.scaling_factor
        if mean is not None and std is not None:
            mean, std = (torch.tensor(each).view(1, -1, 1, 1).to(latents) for each in (mean, std))
            unscaled = unscaled * std + mean
        return unscaled

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    @classmethod
    def load(
        cls,
        name: str,
        entry: ModelEntry,
        *,
        device: torch.device,
        kernel: Kernel,
        on_stage: Callable[[str], None],
    ) -> Self:
        """Implements `base.Loader`."""
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        on_stage(f"loading {name}: base")
        pipe = cls._base(name, entry, dtype)
        checks.check_unet(pipe.unet, pipe.vae)
        checks.check_vae(pipe.vae)
        encoders, tokenizers = cls.text_encoders(pipe)
        settings = entry.base.config if isinstance(entry.base, Checkpoint) else entry.base
        names = [hub.name_of(settings, part) for part in cls.tokenizers]
        checks.check_text(encoders, tokenizers, pipe.unet, names)
        for fused in entry.fused_loras:
            lora.fuse(fused, fused.scale, pipe, cls.pipeline)
        targets = {**cls.ip_targets(pipe.unet), **entry.ip_targets}
        loader = AdapterLoader(pipe, dtype, targets)
        adapters: dict[str, IPAdapter] = {}
        for adapter_name, adapter in entry.adapters.items():
            on_stage(f"loading {name}: adapter {adapter_name}")
            adapters[adapter_name] = loader.load(adapter)
        pipe.unet.encoder_hid_proj = None
        layers = install(pipe.unet, kernel, name=checks.unet_name(pipe.unet))
        text_shape = (tokenizers[0].model_max_length, pipe.unet.config.cross_attention_dim)
        control_loader = ControlNetLoader(
            pipe.unet, dtype, kernel, embedder=cls.embed_times, text_shape=text_shape
        )
        controlnets: dict[str, UNetControlNet] = {}
        for control_name, control in entry.controlnets.items():
            on_stage(f"loading {name}: ControlNet {control_name}")
            controlnets[control_name] = control_loader.load(control)
        t2i_adapters: dict[str, UNetT2IAdapter] = {}
        for t2i_name, source in entry.t2i_adapters.items():
            on_stage(f"loading {name}: T2I-Adapter {t2i_name}")
            t2i_adapters[t2i_name] = load_t2i_adapter(source, pipe.unet, dtype)
        estimator = None
        if entry.depth_estimator is not None:
            on_stage(f"loading {name}: depth estimator")
            estimator = depth.load(entry.depth_estimator)
        loras = {}
        for lora_name, file in entry.loras.items():
            on_stage(f"loading {name}: LoRA {lora_name}")
            loras[lora_name] = lora.load(file, pipe, cls.pipeline)
        model = cls(
            name=name,
            entry=entry,
            pipe=pipe,
            layers=layers,
            adapters=adapters,
            controlnets=controlnets,
            t2i_adapters=t2i_adapters,
            depth_estimator=estimator,
            loras=loras,
            text_fingerprint=hub.fingerprint(*encoders, tokenizers=tokenizers),
            device=device,
            dtype=dtype,
        )
        single_file.check_prediction(entry.base, model.scheduler_config["prediction_type"])
        model._move_to_device(encoders)
        return model

    @classmethod
    def _base(cls, name: str, entry: ModelEntry, dtype: torch.dtype) -> Any:
        base = entry.base
        hub.check_folder(base, f"the base of {name}")
        settings = base
        arguments: dict[str, Any] = {**cls.pipeline_arguments, "dtype": dtype}
        if entry.vae is not None:
            hub.check_folder(entry.vae, f"the VAE of {name}")
            arguments["vae"] = hub.load(AutoencoderKL, entry.vae, dtype)
        if isinstance(base, Checkpoint):
            settings = base.config
            hub.check_folder(settings, f"the `config` of the base of {name}")
        elif base.subfolder is not None:
            raise ConfigurationError(f"the base of {name} has a `subfolder`; a pipeline has none")
        hub.read_json(settings, "model_index.json")
        # Before anything is loaded: another family's pipeline class warns, or fails, on its own.
        cls.check(hub.read_json(settings, "unet", "config.json"), hub.name_of(settings, "unet"))
        scheduler = hub.read_json(settings, "scheduler", "scheduler_config.json")
        schedulers.check_class(scheduler, hub.name_of(settings, "scheduler"))
        for part in cls.tokenizers:
            arguments[part] = hub.tokenizer(settings, part)
        if isinstance(base, Checkpoint):
            return single_file.load(base, cls.pipeline, arguments, cls.parts)
        for part, kind in cls.parts.items():
            if part not in arguments:
                source = base.model_copy(update={"subfolder": part})
                arguments[part] = hub.load(kind, source, dtype)
        return hub.from_pretrained(cls.pipeline, base, hub.loader_arguments(base) | arguments)

    def _move_to_device(self, encoders: Sequence[nn.Module]) -> None:
        pipe = self.pipe
        pipe.set_progress_bar_config(disable=True)
        if pipe.vae.config.force_upcast and self.dtype == torch.float16:
            pipe.vae.to(dtype=torch.float32)
        networks: list[nn.Module] = [pipe.vae, *encoders, *self.networks]
        networks += [t2i.model for t2i in self.t2i_adapters.values()]
        networks += [part for adapter in self.adapters.values() for part in adapter.networks]
        for network in networks:
            network.requires_grad_(requires_grad=False)
            network.eval().to(self.device)
        for network in (pipe.vae, *self.networks):
            network.to(memory_format=torch.channels_last)
