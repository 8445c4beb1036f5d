"""A folder of captioned pictures, as the real SDXL's adapter is trained on.

The folder holds the pictures and a `metadata.jsonl` with a line a picture, {"file_name": ...,
"text": ...}.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPImageProcessorPil


@dataclass(frozen=True)
class Example:
    """One picture. `pixels` `(3, size, size)` in -1..1, `prompt` `(3, 224, 224)` for CLIP.

    `time_ids` are SDXL's six: original height and width, top and left of the crop, target height
    and width.
    """

    pixels: Tensor
    prompt: Tensor
    text: str
    time_ids: Tensor


@dataclass(frozen=True)
class Batch:
    """Examples stacked, `(n, ...)` each."""

    pixels: Tensor
    prompt: Tensor
    texts: list[str]
    time_ids: Tensor


class Folder(Dataset[Example]):
    """The folder's pictures, resized to cover `size` and cropped in the middle.

    Raises FileNotFoundError when it has no metadata.jsonl.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self._directory, self._size = directory, size
        lines = (directory / "metadata.jsonl").read_text().splitlines()
        self._rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
        self._processor = CLIPImageProcessorPil()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        """Read one picture from the disk."""
        row = self._rows[index]
        with Image.open(self._directory / row["file_name"]) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
        size = self._size
        scale = size / min(picture.size)
        width, height = (max(size, round(side * scale)) for side in picture.size)
        left, top = (width - size) // 2, (height - size) // 2
        resized = picture.resize((width, height), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(resized.crop((left, top, left + size, top + size))))
        ids = [picture.height, picture.width, top, left, size, size]
        return Example(
            pixels=pixels.permute(2, 0, 1).float() / 127.5 - 1,
            prompt=self._processor(picture, return_tensors="pt").pixel_values[0],
            text=row["text"],
            time_ids=torch.tensor(ids, dtype=torch.float32),
        )


def collate(examples: list[Example]) -> Batch:
    """Stack examples to a batch."""
    return Batch(
        pixels=torch.stack([example.pixels for example in examples]),
        prompt=torch.stack([example.prompt for example in examples]),
        texts=[example.text for example in examples],
        time_ids=torch.stack([example.time_ids for example in examples]),
    )
