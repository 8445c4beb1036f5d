"""Low-rank updates of a UNet (LoRA, arXiv 2106.09685), and their files.

Key names are diffusers' own (`unet.<layer>.lora_A.weight`), the scale is alpha / rank = 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

#: Endings of the layers that are changed; the second list is LCM-LoRA's, for a new way to sample.
ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
EVERYTHING: Final = (
    *ATTENTION,
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
    "time_emb_proj",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
)


class LowRank(nn.Module):
    """A frozen linear layer or convolution plus a product of two thin ones, zero at first."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.base = base
        if isinstance(base, nn.Linear):
            self.lora_A: nn.Module = nn.Linear(base.in_features, rank, bias=False)
            self.lora_B: nn.Module = nn.Linear(rank, base.out_features, bias=False)
        else:
            self.lora_A = nn.Conv2d(
                base.in_channels,
                rank,
                base.kernel_size,  # type: ignore[arg-type]  # wider than the constructor's
                base.stride,  # type: ignore[arg-type]
                base.padding,  # type: ignore[arg-type]
                bias=False,
            )
            self.lora_B = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        changed: Tensor = self.base(x) + self.lora_B(self.lora_A(x))
        return changed


class Lora(nn.Module):
    """All low-rank updates of `unet`, which is frozen and changed in place."""

    def __init__(self, unet: UNet2DConditionModel, rank: int, targets: tuple[str, ...]) -> None:
        super().__init__()
        unet.requires_grad_(requires_grad=False)
        self.names = [
            name
            for name, module in unet.named_modules()
            if name.endswith(tuple(f".{target}" for target in targets))
            and isinstance(module, nn.Linear | nn.Conv2d)
        ]
        layers = []
        for name in self.names:
            parent, _, child = name.rpartition(".")
            base = unet.get_submodule(name)
            assert isinstance(base, nn.Linear | nn.Conv2d)
            layer = LowRank(base, rank)
            setattr(unet.get_submodule(parent), child, layer)
            layers += [layer.lora_A, layer.lora_B]
        self.layers = nn.ModuleList(layers)

    def public_weights(self) -> dict[str, Tensor]:
        """Name the weights as diffusers' files do."""
        ends = [f"unet.{name}.lora_{part}.weight" for name in self.names for part in "AB"]
        weights = [layer.weight for layer in self.layers]
        return dict(zip(ends, weights, strict=True))  # type: ignore[arg-type]

    def save(self, path: Path) -> None:
        """Write a file that diffusers loads, in float16."""
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {k: w.detach().half().contiguous() for k, w in self.public_weights().items()}
        save_file(weights, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes files only their owner can read


@torch.no_grad()
def fuse(unet: UNet2DConditionModel, path: Path) -> None:
    """Add a file's updates to the weights of `unet`, for good."""
    weights = load_file(path)
    for key, down in weights.items():
        if not key.endswith(".lora_A.weight"):
            continue
        up = weights[key.replace("lora_A", "lora_B")].float()
        layer = unet.get_submodule(key.removeprefix("unet.").removesuffix(".lora_A.weight"))
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        layer.weight += (up.flatten(1) @ down.float().flatten(1)).view_as(layer.weight)
