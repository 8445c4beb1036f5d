"""Write a model to a folder in the layout and key names of the public repositories.

The pipeline as SDXL's, the adapters as h94/IP-Adapter's, the ControlNet as diffusers' own; float16
safetensors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from training import tokenizer
from training.architecture import FORCE_ZEROS, SCHEDULER

ADAPTERS = "adapters"
BASE_FILE = "ip-adapter.safetensors"
PLUS_FILE = "ip-adapter-plus.safetensors"
CONTROLNET = Path("controlnets", "outline")
AREA = Path("controlnets", "area")
SKETCH = Path("t2i_adapters", "sketch")
FAST_LORA = Path("loras", "lcm.safetensors")
DOTS_LORA = Path("loras", "dots.safetensors")
HOLLOW_LORA = Path("loras", "hollow.safetensors")
LOOKS = {"dots": DOTS_LORA, "hollow": HOLLOW_LORA}


@dataclass(frozen=True)
class Parts:
    """All that one model folder holds. The adapters are flat dicts of the public key names."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    image_encoder: CLIPVisionModelWithProjection
    adapter: dict[str, Tensor]
    adapter_plus: dict[str, Tensor]
    controlnet: ControlNetModel


def pipeline(parts: Parts) -> StableDiffusionXLPipeline:
    """Assemble the base model, without adapter and ControlNet."""
    return StableDiffusionXLPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        text_encoder_2=parts.text_encoder_2,
        tokenizer=parts.tokenizer,
        tokenizer_2=parts.tokenizer,
        unet=parts.unet,
        scheduler=DDIMScheduler(**SCHEDULER),
        force_zeros_for_empty_prompt=FORCE_ZEROS,
        add_watermarker=False,
    )


def write(parts: Parts, directory: Path) -> Path:
    """Write the whole model to `directory` in float16 and return it. Converts the parts."""
    for network in (parts.vae, parts.unet, parts.text_encoder, parts.text_encoder_2):
        network.half()
    pipeline(parts).save_pretrained(directory, safe_serialization=True)
    for folder in ("tokenizer", "tokenizer_2"):
        tokenizer.write(directory / folder)
    adapters = directory / ADAPTERS
    parts.image_encoder.half().save_pretrained(adapters / "image_encoder")
    for name, weights in ((BASE_FILE, parts.adapter), (PLUS_FILE, parts.adapter_plus)):
        save_file({key: w.half().contiguous() for key, w in weights.items()}, adapters / name)
        (adapters / name).chmod(0o644)  # safetensors makes files only their owner can read
    parts.controlnet.half().save_pretrained(directory / CONTROLNET)
    for folder in ("text_encoder", "text_encoder_2", f"{ADAPTERS}/image_encoder"):
        _load_as_float32(directory / folder / "config.json")
    return directory


def _load_as_float32(config: Path) -> None:
    """Name float32 as the towers' default: transformers takes the file's, diffusers float32."""
    content = json.loads(config.read_text()) | {"dtype": "float32"}
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
