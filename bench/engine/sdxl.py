"""Full-size SDXL, IP-Adapter (base and Plus, ViT-H) and ControlNet of random weights on disk.

The shapes are those of the public repositories' configurations (stabilityai/stable-diffusion-xl-
base-1.0, h94/IP-Adapter sdxl_models, diffusers/controlnet-canny-sdxl-1.0); time does not depend on
the weights. About 13 GB in float16.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from training import decoupled, layout, tokenizer
from training.projection import LinearProjection, Resampler

CONTEXT: Final = 2048
TEXT_TOKENS: Final = 77
BASE_TOKENS: Final = 4
PLUS_TOKENS: Final = 16
SCALE: Final = 0.6
"""Weights are this far below the size that keeps variance, so that float16 never overflows."""

UNET: Final[dict[str, Any]] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": CONTEXT,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: Final[dict[str, Any]] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": False,  # as madebyollin/sdxl-vae-fp16-fix
}
TEXT: Final[dict[str, Any]] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "max_position_embeddings": TEXT_TOKENS,
}
TEXT_2: Final[dict[str, Any]] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "max_position_embeddings": TEXT_TOKENS,
    "hidden_act": "gelu",
}
VISION: Final[dict[str, Any]] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "projection_dim": 1024,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
}


def build(folder: Path) -> Path:
    """Write the whole model to `folder` in the public layout and return it."""
    words = tokenizer.write(folder / "tokenizer")
    unet = _random(lambda: UNet2DConditionModel(**UNET))
    plain = unet.attn_processors
    linear = _random(lambda: LinearProjection(VISION["projection_dim"], CONTEXT, BASE_TOKENS))
    adapter = _adapter(unet, linear, BASE_TOKENS)
    unet.set_attn_processor(dict(plain))
    resampler = _random(
        lambda: Resampler(VISION["hidden_size"], CONTEXT, PLUS_TOKENS, width=1280, heads=20)
    )
    plus = _adapter(unet, resampler, PLUS_TOKENS)
    unet.set_attn_processor(dict(plain))
    parts = layout.Parts(
        vae=_random(lambda: AutoencoderKL(**VAE)),
        unet=unet,
        tokenizer=words,
        text_encoder=_random(lambda: CLIPTextModel(_text(TEXT, len(words)))),
        text_encoder_2=_random(lambda: CLIPTextModelWithProjection(_text(TEXT_2, len(words)))),
        image_encoder=_random(lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))),
        adapter=adapter,
        adapter_plus=plus,
        controlnet=_random(_controlnet),
    )
    layout.write(parts, folder)
    for name in ("tokenizer", "tokenizer_2"):
        _lengthen(folder / name)
    return folder


def _controlnet() -> ControlNetModel:
    shared = {key: value for key, value in UNET.items() if not key.startswith(("up_", "sample"))}
    return ControlNetModel(**shared, conditioning_embedding_out_channels=(16, 32, 96, 256))


def _text(shape: dict[str, Any], vocabulary: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        **shape,
        vocab_size=vocabulary,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def _adapter(
    unet: UNet2DConditionModel, projection: nn.Module, tokens: int
) -> dict[str, torch.Tensor]:
    return decoupled.public_weights(projection, decoupled.attach(unet, tokens))


def _random(make: Callable[[], Any]) -> Any:
    """Make a network in float16 without initialising it twice, then fill it."""
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            network = make()
        network = network.to_empty(device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() < 2:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            width = weight[0].numel()
            filled = torch.randn(
                weight.shape, generator=generator, device=device, dtype=torch.float16
            )
            weight.copy_(filled * (SCALE / width**0.5))
        for name, buffer in network.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return network.eval()


def _lengthen(folder: Path) -> None:
    """Let the tokenizer pad to as many tokens as SDXL's."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_max_length"] = TEXT_TOKENS
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
