"""LoRA files for the tiny model, in the key formats that people share."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANK = 3


def _pair(layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Random matrices, large enough to be seen in the picture."""
    inner, outer = layer.weight[0].numel(), len(layer.weight)
    down = torch.randn(RANK, *layer.weight.shape[1:]) / inner**0.5
    up = torch.randn(outer, RANK, *([1, 1] if layer.weight.dim() > 2 else [])) * 0.3
    return down, up


def kohya(pipe: Any, path: Path) -> Path:
    """kohya's format: linear layers and some convolutions of the UNet, both text encoders."""
    tensors = {}
    wanted = ("transformer_blocks", "proj_in", "proj_out", "resnets.0.conv", "time_emb_proj")
    networks = {"unet": pipe.unet, "te1": pipe.text_encoder, "te2": pipe.text_encoder_2}
    for prefix, network in networks.items():
        for name, layer in network.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            if prefix == "unet" and not any(part in name for part in wanted):
                continue
            if prefix != "unet" and "layers." not in name:
                continue
            start = "" if prefix == "unet" or name.startswith("text_model.") else "text_model_"
            key = f"lora_{prefix}_{start}{name.replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = _pair(layer)
            tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return path


def diffusers(pipe: Any, path: Path) -> Path:
    """The format of diffusers' training scripts: attention layers of the UNet, no alphas."""
    tensors = {}
    for name, layer in pipe.unet.named_modules():
        if isinstance(layer, nn.Linear) and ".attn" in name:
            down, up = _pair(layer)
            tensors[f"unet.{name}.lora_A.weight"] = down
            tensors[f"unet.{name}.lora_B.weight"] = up
    save_file(tensors, path)
    return path
