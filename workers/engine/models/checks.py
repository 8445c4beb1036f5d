"""Whether the files of a model fit together, asked before and while they are loaded.

Every mismatch is a `ConfigurationError` whose message names both files.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from safetensors import SafetensorError, safe_open

from service.core.catalog import BlockScales
from service.core.errors import ConfigurationError
from workers.engine.models import hub

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
_NORMS: Final = {"base": "norm", "plus": "norm_out", "full": "proj.3"}
"""The layer norm of the tokens."""
_VECTORS: Final = re.compile(r"\.bias$|\.(norm\w*|proj\.3|layers\.\d+\.1\.0)\.weight$")
"""Biases, and weights of layer norms."""
LEGACY_EOS: Final = 2
"""`eos_token_id` of old configurations, which stands for the largest token of a text."""
_TIME_IDS: Final = 6
"""Height and width of the original, of the crop's corner and of the target, in SDXL."""
PLUS_LAYERS: Final = 4
"""Depth of the resampler; diffusers' loader takes no other."""

TOKENS: Final = 4
"""Tokens that an image becomes in a base adapter; diffusers' loader takes no other number."""

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
        norm = self.shapes.get(f"image_proj.{_NORMS[self.kind]}.weight")
        if norm is not None:
            return norm[0]
        return next(
            (shape[-1] for key, shape in self.shapes.items() if "to_k_ip" in key and shape), 0
        )

    @property
    def tokens(self) -> int:
        """Tokens that an image becomes in a base adapter."""
        return max(1, self.shapes["image_proj.proj.weight"][0] // max(1, self.context_width))

    @property
    def projection(self) -> Shapes:
        """All tensors of the projection, as diffusers' class for this kind has them."""
        encoder, context = self.encoder_width, self.context_width
        norms = {_NORMS[self.kind]: context}
        if self.kind == "full":
            linear = {"proj.0": (encoder, encoder), "proj.2": (context, encoder)}
            return _named(linear, linear, norms)
        if self.kind == "base":
            linear = {"proj": (self.tokens * context, encoder)}
            return _named(linear, linear, norms)
        width = self.shapes["image_proj.latents"][-1]
        inner = self.shapes.get("image_proj.layers.0.0.to_q.weight", (0,))[0]
        linear = {"proj_in": (width, encoder), "proj_out": (context, width)}
        plain = {}
        for layer in (f"layers.{number}" for number in range(PLUS_LAYERS)):
            norms |= dict.fromkeys((f"{layer}.0.norm1", f"{layer}.0.norm2", f"{layer}.1.0"), width)
            plain[f"{layer}.0.to_q"] = (inner, width)
            plain[f"{layer}.0.to_kv"] = (2 * inner, width)
            plain[f"{layer}.0.to_out"] = (width, inner)
            plain[f"{layer}.1.1"] = (4 * width, width)
            plain[f"{layer}.1.3"] = (width, 4 * width)
        return {"image_proj.latents": self.shapes["image_proj.latents"]} | _named(
            linear | plain, linear, norms
        )


def _named(linear: Shapes, biased: Shapes, norms: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The tensors of linear layers, of their biases, and of layer norms, as a file names them."""
    shapes = {f"image_proj.{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"image_proj.{name}.bias": shape[:1] for name, shape in biased.items()}
    for name, width in norms.items():
        shapes |= {f"image_proj.{name}.{part}": (width,) for part in ("weight", "bias")}
    return shapes


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
    odd = [
        f"{key} {shape}"
        for key, shape in sorted(shapes.items())
        if key.startswith("image_proj.") and len(shape) != _rank(key)
    ]
    if odd:
        raise ConfigurationError(
            f"adapter file {name} is damaged or of another kind: {len(odd)} tensors have another "
            f"number of dimensions: {', '.join(odd[: hub.NAMED])}"
        )
    hub.check_files([path], f"adapter file {name}")
    return AdapterFile(name, kind, shapes)


def _rank(key: str) -> int:
    if key == "image_proj.latents":
        return 3
    return 1 if _VECTORS.search(key) else 2


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
    if adapter.kind == "base" and adapter.tokens != TOKENS:
        raise ConfigurationError(
            f"adapter file {adapter.name} makes {adapter.tokens} tokens of an image; adapters of "
            f"this kind are served with {TOKENS}, the number that diffusers' loader takes"
        )
    expected: dict[str, tuple[int, ...]] = {
        f"ip_adapter.{number}.{part}.weight": (inner, width)
        for number, inner in cross_attentions.items()
        for part in ("to_k_ip", "to_v_ip")
    }
    for key, shape in expected.items():
        if adapter.shapes.get(key) != shape:
            raise ConfigurationError(
                f"adapter file {adapter.name} has {key} of shape {adapter.shapes.get(key)}, but "
                f"UNet {name} needs {shape}: it belongs to another base model"
            )
    pairs = sorted(key for key in adapter.shapes.keys() - expected if key.startswith("ip_adapter."))
    if pairs:
        raise ConfigurationError(
            f"adapter file {adapter.name} has {len(pairs)} more tensors than UNet {name} has "
            f"cross-attentions for, among them {pairs[0]}: it belongs to another base model"
        )
    expected = {**expected, **adapter.projection}
    found = adapter.shapes
    hub.check_tensors(
        f"adapter file {adapter.name}",
        expected.keys() - found,
        found.keys() - expected,
        [
            (key, found[key], shape)
            for key, shape in expected.items()
            if found.get(key, shape) != shape
        ],
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
    if not getattr(unet.mid_block, "has_cross_attention", False):
        raise ConfigurationError(
            f"UNet {name} has no middle block with cross-attention; such UNets are not served, "
            "since diffusers sets no adapter scales block by block on them"
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


def check_vae(vae: Any) -> None:
    """Check the numbers of a VAE's configuration that latents are scaled with."""
    config, channels = vae.config, vae.config.latent_channels
    scales = {"scaling_factor": [config.scaling_factor]}
    if config.latents_mean is not None and config.latents_std is not None:
        scales |= {"latents_mean": config.latents_mean, "latents_std": config.latents_std}
    for name, values in scales.items():
        several = name != "scaling_factor"
        sound = (
            isinstance(values, list | tuple)
            and len(values) == (channels if several else 1)
            and all(type(value) in (int, float) and math.isfinite(value) for value in values)
            and (name == "latents_mean" or all(value > 0 for value in values))
        )
        if not sound:
            raise ConfigurationError(
                f"VAE {config._name_or_path}: {name} in config.json is "  # noqa: SLF001 (as above)
                f"{values if several else values[0]!r}, which no latents can be scaled with"
            )


def check_text(
    encoders: Sequence[Any], tokenizers: Sequence[Any], unet: Any, names: Sequence[str]
) -> None:
    """Compare text encoders with their tokenizers, whose `names` messages use, and the UNet."""
    for encoder, tokenizer, name in zip(encoders, tokenizers, names, strict=True):
        config = encoder.config
        _check_merges(tokenizer, name)
        pairs = {
            "tokens": (len(tokenizer), config.vocab_size),
            "positions": (tokenizer.model_max_length, config.max_position_embeddings),
        }
        for what, (ours, theirs) in pairs.items():
            if ours != theirs:
                raise ConfigurationError(
                    f"tokenizer {name} has {ours} {what}, but its text encoder has {theirs}: a "
                    "file of it is missing, or it belongs to another model"
                )
        if config.eos_token_id not in (LEGACY_EOS, tokenizer.eos_token_id):
            raise ConfigurationError(
                f"tokenizer {name} ends texts with the token {tokenizer.eos_token_id}, but its "
                f"text encoder looks for {config.eos_token_id}: it belongs to another model"
            )
    if unet.config.addition_embed_type == "text_time":
        pooled, number = encoders[-1].config.projection_dim, unet.config.addition_time_embed_dim
        taken = unet.config.projection_class_embeddings_input_dim
        if pooled + _TIME_IDS * number != taken:
            raise ConfigurationError(
                f"UNet {unet_name(unet)} takes added conditions of width {taken}, but the text "
                f"encoder beside tokenizer {names[-1]} gives {pooled}, and its {_TIME_IDS} sizes "
                f"{number} each"
            )
    widths = [encoder.config.hidden_size for encoder in encoders]
    if sum(widths) != unet.config.cross_attention_dim:
        raise ConfigurationError(
            f"the text encoders beside tokenizer {names[0]} have the widths {widths}, but the "
            f"cross-attention of UNet {unet_name(unet)} takes {unet.config.cross_attention_dim}: "
            "they belong to another base model"
        )


def _check_merges(tokenizer: Any, name: str) -> None:
    """Every token of several characters is made by a merge; without it, texts are cut otherwise."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = rules["model"].get("merges", ())
    made = {"".join(pair) if isinstance(pair, list) else pair.replace(" ", "") for pair in merges}
    added = {token["content"] for token in rules["added_tokens"]}
    lost = [
        token
        for token in rules["model"]["vocab"].keys() - made - added
        if len(token.removesuffix("</w>")) > 1
    ]
    if lost:
        raise ConfigurationError(
            f"tokenizer {name}: no merges for {len(lost)} tokens of its vocabulary, among them "
            f"{min(lost)!r}: merges.txt is missing or cut off"
        )


def check_controlnet(controlnet: Any, name: str, unet: Any) -> None:
    """Compare a ControlNet with the UNet that takes its residuals."""
    if controlnet.config.global_pool_conditions:
        raise ConfigurationError(f"ControlNet {name} pools its conditions, which is not served")
    order = controlnet.config.controlnet_conditioning_channel_order
    if order not in ("rgb", "bgr"):
        raise ConfigurationError(
            f"ControlNet {name}: controlnet_conditioning_channel_order is {order!r}, neither rgb "
            "nor bgr"
        )
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
