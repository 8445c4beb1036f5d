"""Whether the files of a model fit together, asked before and while they are loaded.

Every mismatch is a `ConfigurationError` whose message names both files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from safetensors import SafetensorError, safe_open

from service.core.catalog import BlockScales
from service.core.errors import ConfigurationError

BASE_TOKENS: Final = 4
"""Tokens an image becomes in a base adapter; diffusers' loader takes no other number."""

AdapterKind = Literal["base", "plus", "full"]
"""`base` projects the image embedding, `plus` resamples the hidden states, `full` projects each."""

_ENCODER_WIDTH: Final = {
    "base": ("image_proj.proj.weight", 1),
    "plus": ("image_proj.proj_in.weight", 1),
    "full": ("image_proj.proj.0.weight", 1),
}
"""The tensor, and its dimension, that has the width of the encoder's output."""
_KEYS: Final[Mapping[AdapterKind, frozenset[str]]] = {
    "base": frozenset({"image_proj.proj.weight"}),
    "plus": frozenset(
        {"image_proj.latents", "image_proj.proj_in.weight", "image_proj.proj_out.weight"}
    ),
    "full": frozenset({"image_proj.proj.0.weight", "image_proj.proj.3.weight"}),
}
"""What tells the kinds apart."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """The header of one IP-Adapter weight file. `name` is how messages call it."""

    name: str
    kind: AdapterKind
    shapes: Shapes

    @property
    def encoder_width(self) -> int:
        """The width of the image encoder's output that the projection takes."""
        key, dimension = _ENCODER_WIDTH[self.kind]
        return self.shapes[key][dimension]

    @property
    def context_width(self) -> int:
        """The width of the tokens that the projection makes."""
        if self.kind == "base":
            return self.shapes["image_proj.proj.weight"][0] // BASE_TOKENS
        return self.shapes[f"image_proj.{'proj_out' if self.kind == 'plus' else 'proj.3'}.weight"][
            0
        ]


def read_adapter(path: Path, name: str) -> AdapterFile:
    """Read the header of an adapter file.

    Raises `ConfigurationError` where it is no safetensors file or no adapter of the served kinds.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"adapter file {name} is no readable safetensors file") from error
    kind = next((kind for kind, keys in _KEYS.items() if keys <= shapes.keys()), None)
    if kind is None:
        raise ConfigurationError(
            f"adapter file {name} is no IP-Adapter of a kind that is served (base, Plus, full): "
            "it has neither image_proj.proj nor image_proj.latents"
        )
    return AdapterFile(name, kind, shapes)


def check_encoder(adapter: AdapterFile, config: Any, encoder: str) -> None:
    """Compare an adapter with its image encoder (`config` is the CLIP vision config)."""
    pooled = adapter.kind == "base"
    width = config.projection_dim if pooled else config.hidden_size
    if adapter.encoder_width != width:
        what = "image embeddings" if pooled else "hidden states"
        raise ConfigurationError(
            f"image encoder {encoder} gives {what} of width {width}, but adapter file "
            f"{adapter.name} was trained on width {adapter.encoder_width}: "
            "`image_encoder` names another encoder than the adapter's own"
        )


def check_adapter(adapter: AdapterFile, cross_attentions: Mapping[int, int], unet: Any) -> None:
    """Compare an adapter with the UNet.

    `cross_attentions` maps a cross-attention's number in the adapter's files to its width;
    `unet` is the loaded UNet, whose `name` in messages is `unet.config._name_or_path`.
    """
    name = unet_name(unet)
    width = unet.config.cross_attention_dim
    if adapter.context_width != width:
        raise ConfigurationError(
            f"adapter file {adapter.name} makes tokens of width {adapter.context_width}, but the "
            f"cross-attention of UNet {name} takes width {width}: it belongs to another base model"
        )
    for number, inner in cross_attentions.items():
        for part in ("to_k_ip", "to_v_ip"):
            key = f"ip_adapter.{number}.{part}.weight"
            found = adapter.shapes.get(key)
            if found != (inner, width):
                raise ConfigurationError(
                    f"adapter file {adapter.name} has {key} of shape {found}, but UNet {name} "
                    f"needs {(inner, width)}: it belongs to another base model"
                )


def check_block_scales(scales: BlockScales, adapter: str, unet: Any) -> None:
    """Check that a UNet has the blocks that an adapter's `block_scales` in models.yaml name.

    diffusers passes over names it does not know; the number of values it checks itself.
    """
    for side, blocks in (("down", unet.down_blocks), ("up", unet.up_blocks)):
        named = getattr(scales, side)
        known = [f"block_{n}" for n, block in enumerate(blocks) if hasattr(block, "attentions")]
        unknown = sorted(set(named) - set(known)) if isinstance(named, dict) else []
        if unknown:
            raise ConfigurationError(
                f"models.yaml: `block_scales` of adapter file {adapter} name {side}.{unknown[0]}, "
                f"but UNet {unet_name(unet)} has cross-attention in {side}.{known} only"
            )


def check_unet(unet: Any, vae: Any) -> None:
    """Check that a UNet has no parts that `layers.unet_forward` leaves out, and fits its VAE."""
    name = unet_name(unet)
    config = unet.config
    latents = vae.config.latent_channels
    if config.out_channels != latents:
        raise ConfigurationError(
            f"VAE {vae.config._name_or_path} has {latents} latent channels, "  # noqa: SLF001 (where diffusers keeps the name)
            f"but UNet {name} gives {config.out_channels}"
        )
    if config.in_channels not in (latents, 2 * latents + 1):
        raise ConfigurationError(
            f"UNet {name} takes {config.in_channels} channels; served are {latents} and, with a "
            f"mask and a masked picture, {2 * latents + 1}"
        )
    unserved = (
        unet.class_embedding is not None
        or unet.time_embed_act is not None
        or config.center_input_sample
        or config.time_cond_proj_dim is not None
        or unet.encoder_hid_proj is not None
    )
    if unserved:
        raise ConfigurationError(f"UNet {name} has parts that are not served")


def check_controlnet(controlnet: Any, name: str, unet: Any) -> None:
    """Compare a ControlNet with the UNet that takes its residuals."""
    if controlnet.config.global_pool_conditions:
        raise ConfigurationError(f"ControlNet {name} pools its conditions, which is not served")
    for field in (
        "in_channels",
        "block_out_channels",
        "layers_per_block",
        "cross_attention_dim",
        "addition_embed_type",
        "projection_class_embeddings_input_dim",
    ):
        ours, theirs = controlnet.config[field], unet.config[field]
        if _listed(ours) != _listed(theirs):
            raise ConfigurationError(
                f"ControlNet {name} has {field} {ours}, but UNet {unet_name(unet)} has {theirs}: "
                "it belongs to another base model"
            )


def check_t2i_adapter(adapter: Any, name: str, unet: Any) -> None:
    """Compare a T2I-Adapter with the UNet whose blocks take its features."""
    channels, blocks = list(adapter.config.channels), list(unet.config.block_out_channels)
    if channels[: len(blocks)] != blocks:
        raise ConfigurationError(
            f"T2I-Adapter {name} has channels {channels}, but UNet {unet_name(unet)} has blocks of "
            f"{blocks}: it belongs to another base model"
        )


def unet_name(unet: Any) -> str:
    """How messages call a UNet: the folder or repository it was loaded from."""
    return str(unet.config._name_or_path)  # noqa: SLF001 (where diffusers keeps the name)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
