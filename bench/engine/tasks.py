"""Jobs of every task, and the parts of a model that they need: a T2I-Adapter and LoRAs.

Those are of random weights, for time does not depend on them.
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import T2IAdapter
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from service.core.catalog import Catalog, Lora, Source
from service.core.param_types import StoredUpload
from workers.engine.models.hub import find
from workers.engine.warmup import digest, noise

PICTURE: Final = 256
"""Side of every upload, in pixels."""
LORAS: Final = ("first", "second")
SKETCH: Final = "sketch"
RANK_SHARE: Final = 64
"""A LoRA's rank is the text's width divided by this, and at least 4: 32 for SDXL."""
LAYERS: Final = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
"""Layers of each transformer block that kohya's and diffusers' training scripts change."""


def extended(catalog: Catalog, folder: Path) -> Catalog:
    """The default model of a catalog with a T2I-Adapter and two LoRAs, written to `folder`."""
    entry = catalog.models[catalog.default]
    weights = find(entry.base, "unet", "diffusion_pytorch_model.safetensors")
    with safe_open(weights, "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (not a mapping)
    widths = [shapes["conv_in.weight"][0]]
    for number in itertools.count():
        key = f"down_blocks.{number}.resnets.0.conv2.weight"
        if key not in shapes:
            break
        widths.append(shapes[key][0])
    channels = [*widths[1:], *[widths[-1]] * 4][:4]
    T2IAdapter(
        channels=channels, num_res_blocks=2, downscale_factor=16, adapter_type="full_adapter_xl"
    ).save_pretrained(folder / SKETCH)
    for name in LORAS:
        save_file(dict(_low_rank(shapes)), folder / f"{name}.safetensors")
    loras = {name: Lora(path=folder, weight_name=f"{name}.safetensors") for name in LORAS}
    changes = {"t2i_adapters": {SKETCH: Source(path=folder / SKETCH)}, "loras": loras}
    models = {**catalog.models, catalog.default: entry.model_copy(update=changes)}
    return catalog.model_copy(update={"models": models})


def _low_rank(shapes: Mapping[str, list[int]]) -> Iterator[tuple[str, torch.Tensor]]:
    text = max(shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight"))
    rank = max(4, text // RANK_SHARE)
    for key, shape in shapes.items():
        path = key.removesuffix(".weight")
        if ".transformer_blocks." in key and path.endswith(LAYERS) and path != key:
            outer, inner = shape
            yield f"unet.{path}.lora_A.weight", torch.randn(rank, inner) / inner**0.5
            yield f"unet.{path}.lora_B.weight", 0.02 * torch.randn(outer, rank)


def upload(name: str, picture: Image.Image) -> StoredUpload:
    """A stored upload that `reader` reads."""
    return StoredUpload(
        key=f"inputs/bench/{name}.png",
        sha256=digest(picture),
        pixels_sha256=digest(picture),
        width=picture.width,
        height=picture.height,
    )


def mask(side: str) -> Image.Image:
    """White on its left or right half."""
    drawn = Image.new("RGB", (PICTURE, PICTURE))
    left = 0 if side == "left" else PICTURE // 2
    drawn.paste("white", (left, 0, left + PICTURE // 2, PICTURE))
    return drawn


def tasks(seed: int, control_type: str) -> dict[str, dict[str, Any]]:
    """What nine jobs ask for beside their image prompt, by the name of the task."""
    picture = noise(PICTURE, seed)
    first, second, left, right = (
        upload(name, drawn)
        for name, drawn in (
            ("first", picture),
            ("second", noise(PICTURE, seed + 1)),
            ("left", mask("left")),
            ("right", mask("right")),
        )
    )
    two = {"image": (first, second), "image_weights": (1.0, 1.0)}
    return {
        "image and text": {"prompt": "on a pink background", "ip_scale": (0.5,)},
        "two maps": {"control_image": (first, second), "control_type": (control_type,)},
        "T2I-Adapter": {"control_image": (first,), "control_type": (SKETCH,)},
        "image-to-image": {"init_image": (first,), "strength": 0.6},
        "inpainting": {"init_image": (first,), "mask_image": (left,), "strength": 1.0},
        "two adapters": {**two, "image_adapter": ("base", "plus")},
        "masks": {**two, "image_mask": (left, right)},
        "style only": {"ip_target": "style"},
        "LoRA": {"lora": (LORAS[0],)},
    }


def everything(seed: int, control_type: str) -> dict[str, Any]:
    """What a job asks for that is steered in every way at once."""
    parts = tasks(seed, control_type)
    maps = parts["two maps"]["control_image"]
    return {
        **parts["image and text"],
        **parts["inpainting"],
        **parts["two adapters"],
        **parts["masks"],
        "control_image": (*maps, maps[0]),
        "control_type": (control_type, control_type, SKETCH),
        "control_start": (0.0, 0.2, 0.0),
        "negative_image": maps[1:],
        "negative_prompt": "a (blue:1.2) ring",
        "lora": (f"{LORAS[0]}:0.5", LORAS[1]),
        "ip_scale": (0.5, 0.8),
        "ip_end": 0.9,
        "guidance_end": 0.8,
        "num_images": 2,
    }
