"""The shapes of every network of the bundled model, and of its tiny twin for quick tests.

Only configurations and empty networks: nothing here trains, reads or writes a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from training.projection import LinearProjection, Resampler

#: Longest caption in tokens, both markers included: ten are needed.
MAX_TOKENS: Final = 16
#: Tokens an image prompt becomes in the base adapter (paper, section 3.2.1: N = 4).
IMAGE_TOKENS: Final = 4
#: What both the VAE and the schedulers of SDXL are told of a picture: original size, crop, size.
TIME_IDS: Final = 6
#: The noise schedule. `linear` ends with almost no signal (0.6 %), so that the background's
#: colour is learnt and not leaked; velocity keeps that end well posed at high guidance.
SCHEDULER: Final[dict[str, Any]] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 0,
    "clip_sample": False,
    "set_alpha_to_one": True,
}
#: As in SDXL's model_index.json: an absent negative prompt is zeros, not the encoded "".
FORCE_ZEROS: Final = True


@dataclass(frozen=True)
class Architecture:
    """Widths and depths of one model; the layout is SDXL's whatever they are.

    `size` is the side of its pictures in pixels, `unet` and `vae` are channels a level, and the
    rest are widths, depths and heads of the three CLIP towers.
    """

    size: int
    vae: tuple[int, ...]
    vae_groups: int
    unet: tuple[int, ...]
    unet_layers: int
    transformer_layers: tuple[int, ...]
    head_dim: int
    unet_groups: int
    time_dim: int
    text: int
    text_2: int
    text_layers: int
    projection: int
    vision: int
    vision_layers: int
    vision_heads: int
    resampler: int
    resampler_heads: int
    plus_tokens: int
    control: tuple[int, ...]

    @property
    def context(self) -> int:
        """Width of the cross-attention's keys: both text encoders side by side."""
        return self.text + self.text_2

    @property
    def latent_size(self) -> int:
        """Side of the latents."""
        return self.size >> (len(self.vae) - 1)


SHAPES: Final = Architecture(
    size=128,
    vae=(32, 32, 64, 128),
    vae_groups=16,
    unet=(64, 96, 128),
    unet_layers=1,
    transformer_layers=(1, 1, 1),
    head_dim=32,
    unet_groups=32,
    time_dim=32,
    text=96,
    text_2=96,
    text_layers=3,
    projection=128,
    vision=192,
    vision_layers=4,
    vision_heads=6,
    resampler=128,
    resampler_heads=2,
    plus_tokens=8,
    control=(16, 32, 32, 64),
)

TINY: Final = Architecture(
    size=64,
    vae=(16, 16, 16, 16),
    vae_groups=4,
    unet=(16, 32),
    unet_layers=1,
    transformer_layers=(1, 1),
    head_dim=8,
    unet_groups=8,
    time_dim=8,
    text=16,
    text_2=16,
    text_layers=2,
    projection=16,
    vision=32,
    vision_layers=2,
    vision_heads=2,
    resampler=32,
    resampler_heads=2,
    plus_tokens=8,
    control=(8, 8, 8, 16),
)


def vae(shape: Architecture) -> AutoencoderKL:
    """Return an untrained autoencoder, f = 8, four latent channels, as SDXL's.

    Without attention in the middle: fully convolutional, so that crops train it as well.
    """
    levels = len(shape.vae)
    return AutoencoderKL(
        block_out_channels=shape.vae,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=shape.vae_groups,
        sample_size=shape.size,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def unet(shape: Architecture) -> UNet2DConditionModel:
    """Return an untrained UNet of SDXL's layout (time ids, pooled text, linear projections)."""
    levels = len(shape.unet)
    return UNet2DConditionModel(
        sample_size=shape.latent_size,
        in_channels=4,
        out_channels=4,
        block_out_channels=shape.unet,
        layers_per_block=shape.unet_layers,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        transformer_layers_per_block=shape.transformer_layers,
        attention_head_dim=tuple(width // shape.head_dim for width in shape.unet),
        cross_attention_dim=shape.context,
        use_linear_projection=True,
        norm_num_groups=shape.unet_groups,
        addition_embed_type="text_time",
        addition_time_embed_dim=shape.time_dim,
        projection_class_embeddings_input_dim=shape.projection + TIME_IDS * shape.time_dim,
    )


def _text_config(shape: Architecture, width: int, vocabulary: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=max(1, width // 32),
        max_position_embeddings=MAX_TOKENS,
        projection_dim=shape.projection,
        hidden_act="gelu",
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def text_encoder(shape: Architecture, vocabulary: int) -> CLIPTextModel:
    """Return SDXL's first text encoder, untrained."""
    return _xavier(CLIPTextModel(_text_config(shape, shape.text, vocabulary)))


def text_encoder_2(shape: Architecture, vocabulary: int) -> CLIPTextModelWithProjection:
    """Return SDXL's second text encoder, untrained; its projection is the pooled text."""
    config = _text_config(shape, shape.text_2, vocabulary)
    return _xavier(CLIPTextModelWithProjection(config))


def image_encoder(shape: Architecture) -> CLIPVisionModelWithProjection:
    """Return the image encoder, untrained: 224 x 224 pixels in patches of 32."""
    config = CLIPVisionConfig(
        hidden_size=shape.vision,
        intermediate_size=4 * shape.vision,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        projection_dim=shape.projection,
        image_size=224,
        patch_size=32,
        hidden_act="gelu",
    )
    model = CLIPVisionModelWithProjection(config)
    embeddings = model.vision_model.embeddings
    embeddings.patch_embedding = _Patches(
        3, shape.vision, kernel_size=config.patch_size, stride=config.patch_size, bias=False
    )
    return _xavier(model)


class _Patches(nn.Conv2d):
    """The patch embedding as one matrix product: the same weights, five times as fast backwards."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the base class names it so)
        side = self.kernel_size[0]
        patches = input.unflatten(3, (-1, side)).unflatten(2, (-1, side))
        rows = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return functional.linear(rows, self.weight.flatten(1)).permute(0, 3, 1, 2)


def image_tokens(shape: Architecture, *, plus: bool) -> int:
    """Count the tokens that an image prompt becomes."""
    return shape.plus_tokens if plus else IMAGE_TOKENS


def projection(shape: Architecture, *, plus: bool) -> nn.Module:
    """Return the base adapter's projection or Plus' resampler, untrained."""
    tokens = image_tokens(shape, plus=plus)
    if plus:
        return Resampler(
            shape.vision, shape.context, tokens, shape.resampler, shape.resampler_heads
        )
    return LinearProjection(shape.projection, shape.context, tokens)


def _xavier(model: Any) -> Any:  # the three towers share no narrower type
    """Initialise as Xavier does: at these widths CLIP's own initialisation never leaves chance."""
    # The fused attention's backward pass in bfloat16 takes as long as all the rest on a CPU.
    model.set_attn_implementation("eager")
    for name, parameter in model.named_parameters():
        if parameter.dim() == 4:
            torch.nn.init.xavier_uniform_(parameter.view(parameter.shape[0], -1))
        elif parameter.dim() == 2 and "embedding" not in name:
            torch.nn.init.xavier_uniform_(parameter)
        elif parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.05)
    return model
