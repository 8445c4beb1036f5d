"""Checkpoints anew from a published model folder, so that its training can go on without them.

`python -m training.restore` writes what the stages read from `--out`. Published weights are the
averaged ones in float16; the optimizer's moments are lost, and a stage that goes on warms up again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, T2IAdapter, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from training import (
    architecture,
    clip,
    controlnet,
    decoupled,
    layout,
    lcm,
    lora,
    style,
    t2i,
    vision,
)
from training.adapter import Adapter
from training.loop import write_checkpoint
from training.lora import Lora
from training.towers import Towers


def restore(directory: Path, out: Path, again: tuple[str, ...] = ()) -> None:
    """Write a checkpoint to `out` for every stage that `directory` names in `training.json`.

    The stages of `again` start their minutes and their learning rate anew.

    A stage's loss curve begins anew. The parts of CLIP that only its training needs are not
    published: stage 2b goes on with fresh heads and the adapters' own projections, and takes some
    minutes to be where it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    past = json.loads((directory / "training.json").read_text())
    base = _adapter(directory, layout.BASE_FILE, plus=False)
    plus = _adapter(directory, layout.PLUS_FILE, plus=True)
    encoder = _towers(directory)
    encoder.words.load_state_dict(base.projection.state_dict())
    encoder.words_plus.load_state_dict(plus.projection.state_dict())
    # Each with parts of its own: what a stage freezes, it freezes for itself.
    stages: dict[str, nn.Module] = {
        "vae": AutoencoderKL.from_pretrained(directory / "vae"),
        "clip": _towers(directory),
        "vision": vision.freeze_text(encoder),
        "unet": UNet2DConditionModel.from_pretrained(directory / "unet"),
        controlnet.NAMES["outline"]: ControlNetModel.from_pretrained(directory / layout.CONTROLNET),
        controlnet.NAMES["area"]: ControlNetModel.from_pretrained(directory / layout.AREA),
        t2i.NAME: T2IAdapter.from_pretrained(directory / layout.SKETCH),
        base.name: base,
        plus.name: plus,
        "lcm": _lora(directory, layout.FAST_LORA, lcm.RANK),
    }
    for look, path in layout.LOOKS.items():
        stages[style.name(look)] = _lora(directory, path, style.RANK)
    for name, model in stages.items():
        if name in past:
            history = past[name] | {"minutes": 0.0} if name in again else past[name]
            keep(model, history, out / f"{name}.pt")


def keep(model: nn.Module, past: dict[str, float], checkpoint: Path) -> None:
    """Write a checkpoint of `model` as it is, trained for the minutes and steps of `past`."""
    state = {
        "model": model.state_dict(),
        "average": [p.detach() for p in model.parameters() if p.requires_grad],
        "step": int(past["steps"]),
        "seconds": 60 * past["minutes"],
        "losses": [past["loss"]],
    }
    write_checkpoint(checkpoint, state)


def _towers(directory: Path) -> Towers:
    towers = Towers(architecture.SHAPES, int(clip.sentence_tokens().max()) + 1)
    encoder = CLIPVisionModelWithProjection.from_pretrained(
        directory / layout.ADAPTERS / "image_encoder"
    )
    towers.image_encoder.load_state_dict(encoder.state_dict())
    first = CLIPTextModel.from_pretrained(directory / "text_encoder")
    towers.text_encoder.load_state_dict(first.state_dict())
    second = CLIPTextModelWithProjection.from_pretrained(directory / "text_encoder_2")
    towers.text_encoder_2.load_state_dict(second.state_dict())
    return towers


def _adapter(directory: Path, file: str, *, plus: bool) -> Adapter:
    base = UNet2DConditionModel.from_pretrained(directory / "unet")
    adapter = Adapter(base, architecture.SHAPES, plus=plus)
    weights = load_file(directory / layout.ADAPTERS / file)
    decoupled.load_public(adapter.projection, adapter.attentions, weights)
    return adapter


def _lora(directory: Path, path: Path, rank: int) -> Lora:
    unet = UNet2DConditionModel.from_pretrained(directory / "unet")
    result = Lora(unet, rank, lora.EVERYTHING)
    weights = load_file(directory / path)
    with torch.no_grad():
        for name, weight in result.public_weights().items():
            weight.copy_(weights[name])
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("models/shapes"))
    parser.add_argument("--out", type=Path, default=Path("work"))
    parser.add_argument(
        "--again", nargs="*", default=(), help="stages that begin their minutes anew"
    )
    given = parser.parse_args()
    restore(given.directory, given.out, tuple(given.again))
