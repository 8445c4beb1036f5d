"""What happens to image prompts on their way: other sizes and filters, blur, noise and JPEG.

Pictures are drawn and distorted in groups of one size. A picture that a person sends has been
scaled, compressed and photographed; the image encoder learns to see through that.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from training import drawing
from training.towers import see
from training.world import Scenes

GROUP: Final = 8
#: Sides that pictures are drawn at, in pixels; the frequent one is the model's own.
SIZES: Final = (64, 96, 96, 112, 128, 128, 128, 128, 128, 128, 128, 160, 160, 192, 224, 288)
SMALLEST: Final = 48
FILTERS: Final = ("nearest", "bilinear", "bicubic")
#: Chance of each distortion. One picture in twelve or so has none of them.
RESAMPLE: Final = 0.4
BLUR: Final = 0.3
NOISE: Final = 0.45
JPEG: Final = 0.35
#: Spread of the noise at most, of 255; and of the blur, in parts of the side.
NOISE_SPREAD: Final = 18.0
BLUR_SPREAD: Final = 0.012


def prompts(scenes: Scenes, generator: torch.Generator) -> Tensor:
    """Draw scenes as image prompts and distort them; as from `towers.see`, `(n, 3, 224, 224)`."""
    groups = (scenes[start : start + GROUP] for start in range(0, len(scenes), GROUP))
    return torch.cat([see(distort(_draw(group, generator), generator)) for group in groups])


def _draw(scenes: Scenes, generator: torch.Generator) -> Tensor:
    return drawing.draw(scenes, SIZES[_integer(len(SIZES), generator)])


def distort(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Resample, blur, add noise and compress uint8 pictures, each by chance; uint8 again.

    The side may change, for all of them alike.
    """
    pictures = pixels.float()
    if _chance(BLUR, generator):
        pictures = blur(pictures, BLUR_SPREAD * _uniform(generator))
    if _chance(RESAMPLE, generator):
        pictures = _resample(pictures, generator)
    n = len(pictures)
    spread = NOISE_SPREAD * torch.rand(n, 1, 1, 1, generator=generator)
    for row in (torch.rand(n, generator=generator) < NOISE).nonzero()[:, 0].tolist():
        pictures[row] += spread[row] * torch.randn(pictures.shape[1:], generator=generator)
    result = pictures.clamp(0, 255).round().to(torch.uint8)
    for row in (torch.rand(n, generator=generator) < JPEG).nonzero()[:, 0].tolist():
        result[row] = _compress(result[row], 40 + _integer(56, generator))
    return result


def blur(pictures: Tensor, spread: float) -> Tensor:
    """Blur by a normal kernel; `spread` in parts of the side."""
    sigma = spread * pictures.shape[-1]
    reach = int(2.5 * sigma) + 1
    kernel = (-0.5 * (torch.arange(-reach, reach + 1) / max(sigma, 1e-3)).square()).exp()
    kernel = (kernel / kernel.sum()).expand(pictures.shape[1], 1, 1, -1)
    padded = functional.pad(pictures, (reach, reach, reach, reach), mode="replicate")
    across = functional.conv2d(padded, kernel, groups=pictures.shape[1])
    return functional.conv2d(across, kernel.transpose(2, 3), groups=pictures.shape[1])


def _resample(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Scale down to a random side, and sometimes back."""
    before = pictures.shape[-1]
    side = SMALLEST + _integer(before - SMALLEST + 1, generator)
    for target in (side, before)[: 1 + _integer(2, generator)]:
        name = FILTERS[_integer(len(FILTERS), generator)]
        smooth = {} if name == "nearest" else {"antialias": True}
        pictures = functional.interpolate(pictures, size=(target, target), mode=name, **smooth)
    return pictures


def _compress(picture: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


def _integer(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _chance(chance: float, generator: torch.Generator) -> bool:
    return _uniform(generator) < chance
