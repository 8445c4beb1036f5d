"""The adapter's attention: a second cross-attention for the image beside the text's.

Z = softmax(QK^T / sqrt(d)) V + scale * softmax(QK'^T / sqrt(d)) V' (paper, equations 4 and 5);
only K' and V' are trained. This is the training's own copy, plain and differentiable; the engine
that serves requests has another that is made for speed. Attention is two matrix products here: the
backward pass of the fused one in bfloat16 takes as long on a CPU as all the rest of the UNet.
"""

from __future__ import annotations

import re

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from torch.nn import functional


class DecoupledAttention(nn.Module):
    """An attention processor with weights: `to_k_ip` and `to_v_ip`, copies of the text's at first.

    The last `tokens` of the context are the image's, the others the text's. `scale` is the
    paper's lambda, or one a picture as `(batch, 1, 1, 1)`.
    """

    def __init__(self, attention: Attention, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.scale: float | Tensor = 1.0
        self.to_k_ip = nn.Linear(attention.to_k.in_features, attention.inner_dim, bias=False)
        self.to_v_ip = nn.Linear(attention.to_k.in_features, attention.inner_dim, bias=False)
        with torch.no_grad():
            self.to_k_ip.weight.copy_(attention.to_k.weight)
            self.to_v_ip.weight.copy_(attention.to_v.weight)

    def forward(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend `(batch, pixels, dim)` to `(batch, text + image tokens, context)`."""
        del attention_mask, temb  # never given to the cross-attentions of this layout
        text = encoder_hidden_states[:, : -self.tokens]
        image = encoder_hidden_states[:, -self.tokens :]
        query = _heads(attn.to_q(hidden_states), attn.heads)
        out = _attend(
            query, _heads(attn.to_k(text), attn.heads), _heads(attn.to_v(text), attn.heads)
        ) + self.scale * _attend(
            query, _heads(self.to_k_ip(image), attn.heads), _heads(self.to_v_ip(image), attn.heads)
        )
        joined: Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return joined


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    logits = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return functional.softmax(logits, dim=-1) @ value


def _heads(x: Tensor, heads: int) -> Tensor:
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def attach(unet: UNet2DConditionModel, tokens: int) -> nn.ModuleDict:
    """Put a `DecoupledAttention` at every cross-attention and return them.

    Their keys in the dict are the public files': a processor's place in `unet.attn_processors`,
    self-attentions counted too.
    """
    added = nn.ModuleDict()
    processors: dict[str, object] = {}
    for place, name in enumerate(unet.attn_processors):
        if re.search(r"attn2\.processor$", name):
            attention = unet.get_submodule(name.removesuffix(".processor"))
            assert isinstance(attention, Attention)
            processors[name] = added[str(place)] = DecoupledAttention(attention, tokens)
        else:
            processors[name] = AttnProcessor()
    unet.set_attn_processor(processors)
    return added


def _public(projection: nn.Module, attentions: nn.ModuleDict) -> dict[str, nn.Module]:
    """Name the parts as the public files do."""
    return {"image_proj": projection, "ip_adapter": attentions}


def public_weights(projection: nn.Module, attentions: nn.ModuleDict) -> dict[str, Tensor]:
    """Name the trained weights as the public files do: `image_proj.*`, `ip_adapter.N.*`."""
    return {
        f"{name}.{key}": weight
        for name, part in _public(projection, attentions).items()
        for key, weight in part.state_dict().items()
    }


def load_public(
    projection: nn.Module, attentions: nn.ModuleDict, weights: dict[str, Tensor]
) -> None:
    """Read back what `public_weights` named; raises RuntimeError where keys are missing or over."""
    for name, part in _public(projection, attentions).items():
        own = {k.removeprefix(f"{name}."): w for k, w in weights.items() if k.startswith(name)}
        part.load_state_dict(own)
