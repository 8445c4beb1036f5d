"""Our attention layers, put in the place of diffusers' inside a loaded UNet or ControlNet.

They keep the loaded weights. A cross-attention layer makes keys and values only when a row is
admitted (`Memory`), never in a forward pass. It knows nothing of rows, jobs or devices.
"""

from collections.abc import Iterable, Sequence

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
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

    def forward(self, hidden_states: Tensor, **_ignored: object) -> Tensor:
        """Attend; the other arguments that diffusers' block passes are all None here."""
        query, key, value = self.to_qkv(hidden_states).unflatten(-1, (3, self.heads, -1)).unbind(2)
        out: Tensor = self.to_out(self.kernel(query, key, value, None).flatten(2))
        return out


class CrossAttention(nn.Module):
    """Decoupled cross-attention to a `Context`, given as `encoder_hidden_states`.

    `to_k` and `to_v` are the text's; `offset` is the place of this layer in the context's width.
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

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Context, **_ignored: object
    ) -> Tensor:
        """Attend `(batch, pixels, dim)` to the context."""
        query = self.to_q(hidden_states).unflatten(-1, (self.heads, -1))
        out = decoupled(
            self.kernel, query, encoder_hidden_states, layer=self.layer, offset=self.offset
        )
        joined: Tensor = self.to_out(out.flatten(2))
        return joined


def install(model: nn.Module, kernel: Kernel, *, name: str) -> tuple[CrossAttention, ...]:
    """Replace every attention of `model` and return its cross-attentions in their order.

    The order is the one in which diffusers lists its attention processors, which numbers the
    adapters' weights. Raises `ConfigurationError` for attention of a kind SDXL does not have.
    """
    layers: list[CrossAttention] = []
    offset = 0
    for place, block in model.named_modules():
        if not isinstance(block, BasicTransformerBlock):
            continue
        for attention in (block.attn1, block.attn2):
            _check(attention, f"{name}: {place}")
        block.attn1 = SelfAttention(block.attn1, kernel)
        block.attn2 = CrossAttention(block.attn2, kernel, layer=len(layers), offset=offset)
        layers.append(block.attn2)
        offset += 2 * layers[-1].to_k.out_features
    return tuple(layers)


def set_kernel(model: nn.Module, kernel: Kernel) -> None:
    """Let every attention of `model` run on another kernel."""
    for module in model.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.kernel = kernel


def text_memory(layers: Sequence[CrossAttention], text: Tensor) -> Tensor:
    """Make keys and values of every layer from text embeddings, as `Context.text` wants them.

    `(batch, tokens, dim)` to `(batch, tokens, width)`.
    """
    return torch.cat([part(text) for layer in layers for part in (layer.to_k, layer.to_v)], dim=-1)


def image_memory(weights: Iterable[tuple[nn.Linear, nn.Linear]], tokens: Tensor) -> Tensor:
    """Make K' and V' of every layer from image tokens, as `Context.image` wants them.

    `weights` are an adapter's `to_k_ip` and `to_v_ip` in the order of the layers.
    `(batch, tokens, dim)` to `(batch, tokens, width)`.
    """
    return torch.cat([part(tokens) for pair in weights for part in pair], dim=-1)


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


def _check(attention: object, place: str) -> None:
    known = (
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
    if not known:
        raise ConfigurationError(f"{place} is not an attention of SDXL's kind")
