"""One forward pass of a UNet or ControlNet over a mixed batch.

The order of operations is diffusers' (`UNet2DConditionModel.forward`, `ControlNetModel.forward`);
what does not depend on the sample (time embeddings, keys and values, the map's embedding) is passed
in, computed once a job.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from workers.engine.attention import Context


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
