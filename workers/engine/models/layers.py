"""The forward pass of a UNet or ControlNet over a mixed batch, and the transformers inside.

`install` replaces diffusers' transformers and keeps the loaded weights. A cross-attention layer
makes keys and values only when a job is prepared (`text_kv`, `image_kv`), never in a forward pass.

The order of operations is diffusers' (`UNet2DConditionModel.forward`, `ControlNetModel.forward`);
what does not depend on the sample (time embeddings, keys and values, the map's embedding) is passed
in, computed once a job.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from service.core.errors import ConfigurationError
from workers.engine.attention import Context, Kernel, decoupled


class SelfAttention(nn.Module):
    """Self-attention with the three projections fused into one matrix.

    `(batch, pixels, dim)` to the same. Source of the computation: diffusers' `AttnProcessor2_0`.
    """

    def __init__(self, attention: Attention, kernel: Kernel) -> None:
        super().__init__()
        self.heads: int = attention.heads
        self.kernel = kernel
        parts = (attention.to_q, attention.to_k, attention.to_v)
        self.to_qkv = _fused(parts)
        self.to_out: nn.Linear = attention.to_out[0]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Attend `(batch, pixels, dim)` to itself."""
        query, key, value = self.to_qkv(hidden_states).unflatten(-1, (3, self.heads, -1)).unbind(2)
        out: Tensor = self.to_out(self.kernel(query, key, value, None).flatten(2))
        return out


class CrossAttention(nn.Module):
    """Decoupled cross-attention to a `Context`.

    `to_k` and `to_v` are the text's; `offset` is where this layer begins in the context's width.
    """

    def __init__(self, attention: Attention, kernel: Kernel, *, layer: int, offset: int) -> None:
        super().__init__()
        self.heads: int = attention.heads
        self.layer = layer
        self.offset = offset
        self.kernel = kernel
        self.to_q: nn.Linear = attention.to_q
        self.to_k: nn.Linear = attention.to_k
        self.to_v: nn.Linear = attention.to_v
        self.to_out: nn.Linear = attention.to_out[0]

    def forward(self, hidden_states: Tensor, context: Context) -> Tensor:
        """Attend `(batch, pixels, dim)` to the context."""
        query = self.to_q(hidden_states).unflatten(-1, (self.heads, -1))
        out = decoupled(self.kernel, query, context, layer=self.layer, offset=self.offset)
        joined: Tensor = self.to_out(out.flatten(2))
        return joined


class Block(nn.Module):
    """One transformer block: self-attention, cross-attention, feed-forward, each on its norm.

    Source of the computation: diffusers' `BasicTransformerBlock` with `layer_norm`.
    """

    def __init__(
        self, block: BasicTransformerBlock, kernel: Kernel, *, layer: int, offset: int
    ) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = block.norm1, block.norm2, block.norm3
        self.attn1 = SelfAttention(block.attn1, kernel)
        self.attn2 = CrossAttention(block.attn2, kernel, layer=layer, offset=offset)
        self.ff = block.ff

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """`(batch, pixels, dim)` to the same."""
        hidden = hidden + self.attn1(self.norm1(hidden))
        hidden = hidden + self.attn2(self.norm2(hidden), context)
        summed: Tensor = hidden + self.ff(self.norm3(hidden))
        return summed


class Transformer(nn.Module):
    """The transformer between two convolutions of a UNet; stays in channels-last all the way.

    diffusers' own (`Transformer2DModel`, the source of the computation) turns its result to
    channels-first, which every convolution after it then has to turn back. The projections before
    and after the blocks are linear (SDXL, SD 2) or convolutions (SD 1.5).
    """

    def __init__(self, transformer: Transformer2DModel, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.norm = transformer.norm
        self.has_linear_projections: bool = transformer.use_linear_projection
        self.proj_in = transformer.proj_in
        self.proj_out = transformer.proj_out
        self.transformer_blocks = nn.ModuleList(blocks)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Context, **_ignored: object
    ) -> tuple[Tensor]:
        """`(batch, channels, h, w)` to the same, as diffusers' UNet blocks call it."""
        size = hidden_states.shape[-2:]
        hidden = self.norm(hidden_states)
        if not self.has_linear_projections:
            hidden = self.proj_in(hidden)
        hidden = hidden.permute(0, 2, 3, 1).flatten(1, 2)
        if self.has_linear_projections:
            hidden = self.proj_in(hidden)
        for block in self.transformer_blocks:
            hidden = block(hidden, encoder_hidden_states)
        if self.has_linear_projections:
            hidden = self.proj_out(hidden)
        hidden = hidden.unflatten(1, size).permute(0, 3, 1, 2)
        if not self.has_linear_projections:
            hidden = self.proj_out(hidden)
        return (hidden + hidden_states,)


def install(model: nn.Module, kernel: Kernel, *, name: str) -> tuple[CrossAttention, ...]:
    """Replace every transformer of `model` and return its cross-attentions in their order.

    The order is the one in which diffusers lists its attention processors, which numbers the
    adapters' weights. Raises `ConfigurationError` for attention of another kind.
    """
    layers: list[CrossAttention] = []
    offset = 0
    for path, transformer in list(model.named_modules()):
        if not isinstance(transformer, Transformer2DModel):
            continue
        _check_transformer(transformer, f"{name}: {path}")
        blocks = []
        for block in transformer.transformer_blocks:
            blocks.append(Block(block, kernel, layer=len(layers), offset=offset))
            layers.append(blocks[-1].attn2)
            offset += 2 * layers[-1].to_k.out_features
        model.set_submodule(path, Transformer(transformer, blocks))
    return tuple(layers)


def text_kv(layers: Sequence[CrossAttention], text: Tensor) -> Tensor:
    """Make keys and values of every layer from text embeddings, as `Context.text` wants them.

    `(batch, tokens, dim)` to `(batch, tokens, width)`.
    """
    return torch.cat([part(text) for layer in layers for part in (layer.to_k, layer.to_v)], dim=-1)


def image_kv(weights: Iterable[tuple[nn.Linear, nn.Linear]], tokens: Tensor) -> Tensor:
    """Make K' and V' of every layer from image tokens, as `Context.image` wants them.

    `weights` are an adapter's `to_k_ip` and `to_v_ip` in the order of the layers.
    `(batch, tokens, dim)` to `(batch, tokens, width)`.
    """
    return torch.cat([part(tokens) for pair in weights for part in pair], dim=-1)


def kv_width(layers: Iterable[CrossAttention]) -> int:
    """The width of `text_kv` and `image_kv`."""
    return sum(2 * layer.to_k.out_features for layer in layers)


def _fused(parts: Sequence[nn.Linear]) -> nn.Linear:
    first = parts[0]
    fused = nn.Linear(
        first.in_features,
        sum(part.out_features for part in parts),
        bias=first.bias is not None,
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    with torch.no_grad():
        fused.weight.copy_(torch.cat([part.weight for part in parts]))
        if first.bias is not None:
            fused.bias.copy_(torch.cat([part.bias for part in parts]))
    return fused.requires_grad_(first.weight.requires_grad)


def _check_transformer(transformer: Transformer2DModel, path: str) -> None:
    blocks = list(transformer.transformer_blocks)
    known = (
        transformer.is_input_continuous
        and all(block.norm_type == "layer_norm" and block.pos_embed is None for block in blocks)
        and all(_is_known(part) for block in blocks for part in (block.attn1, block.attn2))
    )
    if not known:
        raise ConfigurationError(f"{path} is a transformer of a kind that is not served")


def _is_known(attention: object) -> bool:
    return (
        isinstance(attention, Attention)
        and attention.group_norm is None
        and attention.spatial_norm is None
        and attention.norm_cross is None
        and attention.norm_q is None
        and attention.norm_k is None
        and attention.added_kv_proj_dim is None
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
    )


def unet_forward(
    unet: Any,
    sample: Tensor,
    emb: Tensor,
    context: Context,
    residuals: Sequence[Tensor] | None = None,
    features: Sequence[Tensor] | None = None,
) -> Tensor:
    """The UNet's prediction for `sample`, `(batch, channels, h, w)`.

    `emb` is `(batch, width)`; `residuals` are a ControlNet's, the middle block's last; `features`
    are a T2I-Adapter's, one for each block on the way down and perhaps one for the middle.
    """
    uneven = any(side % 2**unet.num_upsamplers for side in sample.shape[-2:])
    hidden, skips = _down(unet, unet.conv_in(sample), emb, context, features)
    if residuals is not None:
        skips = [skip + residual for skip, residual in zip(skips, residuals, strict=False)]
        hidden = hidden + residuals[-1]
    for block in unet.up_blocks:
        count = len(block.resnets)
        taken, skips = skips[-count:], skips[:-count]
        arguments: dict[str, Any] = {"encoder_hidden_states": context} if _attends(block) else {}
        if uneven and skips:
            arguments["upsample_size"] = skips[-1].shape[2:]
        hidden = block(hidden, temb=emb, res_hidden_states_tuple=tuple(taken), **arguments)
    out: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    return out


def control_forward(
    net: Any, sample: Tensor, emb: Tensor, context: Context, hint: Tensor, scale: Tensor
) -> list[Tensor]:
    """A ControlNet's residuals for `sample`, one for each skip of the UNet, the middle's last.

    `hint` is the embedded map, `(batch, width, h, w)`; `scale` is `(batch,)`.
    """
    hidden, skips = _down(net, net.conv_in(sample) + hint, emb, context)
    outputs = [part(skip) for part, skip in zip(net.controlnet_down_blocks, skips, strict=True)]
    outputs.append(net.controlnet_mid_block(hidden))
    return [output * scale[:, None, None, None] for output in outputs]


def embed_map(net: Any, picture: Tensor) -> Tensor:
    """A ControlNet map, `(batch, 3, height, width)` in 0 to 1, as `control_forward` takes it."""
    if net.config.controlnet_conditioning_channel_order == "bgr":
        picture = picture.flip(1)
    hint: Tensor = net.controlnet_cond_embedding(picture)
    return hint


def union_hint(net: Any, hint: Tensor, mode: int) -> Tensor:
    """An embedded map as a union ControlNet adds it to its input, `(batch, width, h, w)`.

    Source: diffusers' `ControlNetUnionModel`, for one type of map. Its attention runs along the
    first dimension, which is the batch there, and a batch there is of one map. Here it may be of
    several jobs' maps, so each is a sequence of one, and no step changes what comes out.
    """
    tokens = (hint.mean(dim=(2, 3)) + net.task_embedding[mode])[None]
    for layer in net.transformer_layes:  # spelled so in diffusers
        tokens = layer(tokens)
    shift: Tensor = net.spatial_ch_projs(tokens[0])
    return hint + shift[:, :, None, None]


def union_mode(net: Any, mode: int) -> Tensor:
    """What a union ControlNet adds to its time embeddings for a type of map, `(1, width)`."""
    weight = net.task_embedding
    chosen = torch.zeros(net.config.num_control_type, device=weight.device, dtype=torch.float32)
    chosen[mode] = 1
    embedded = net.control_type_proj(chosen).reshape(1, -1).to(weight.dtype)
    added: Tensor = net.control_add_embedding(embedded)
    return added


def _down(
    net: Any,
    hidden: Tensor,
    emb: Tensor,
    context: Context,
    features: Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    skips = [hidden]
    left = list(features or ())
    for block in net.down_blocks:
        arguments: dict[str, Any] = {}
        if _attends(block):
            arguments["encoder_hidden_states"] = context
            if left:
                arguments["additional_residuals"] = left.pop(0)
        hidden, added = block(hidden, temb=emb, **arguments)
        skips += added
        if left and not _attends(block):
            hidden = hidden + left.pop(0)
            skips[-1] = hidden
    arguments = {"encoder_hidden_states": context} if _attends(net.mid_block) else {}
    hidden = net.mid_block(hidden, emb, **arguments)
    if left and left[0].shape == hidden.shape:
        hidden = hidden + left[0]
    return hidden, skips


def _attends(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))
