"""Put the trained stages together into the bundled model: `python -m training.export`.

Stages that are not trained yet are written with the weights they start from, so that the layout
is whole from the first stage on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from training import (
    adapter,
    architecture,
    controlnet,
    decoupled,
    layout,
    lcm,
    style,
    t2i,
    tiny,
    unet,
    vae,
    vision,
)
from training.adapter import Adapter

STAGES = (
    "vae",
    "clip",
    "vision",
    "unet",
    "adapter",
    "adapter-plus",
    *controlnet.NAMES.values(),
    t2i.NAME,
    *map(style.name, style.LOOKS),
    "lcm",
)


def export(out: Path, directory: Path) -> Path:
    """Read the checkpoints in `out` and write the model to `directory`."""
    torch.manual_seed(0)
    parts = tiny.parts(architecture.SHAPES)
    towers = vision.load(out)
    base = unet.load(out)
    maps = {kind: controlnet.load(out, base, kind) for kind in controlnet.NAMES}
    plain = dict(base.attn_processors)
    weights = {}
    for plus in (False, True):
        weights[plus] = _weights(adapter.load(out, base, plus=plus))
        base.set_attn_processor(dict(plain))
    written = layout.Parts(
        vae=vae.load(out),
        unet=base,
        tokenizer=parts.tokenizer,
        text_encoder=towers.text_encoder,
        text_encoder_2=towers.text_encoder_2,
        image_encoder=towers.image_encoder,
        adapter=weights[False],
        adapter_plus=weights[True],
        controlnet=maps["outline"],
    )
    layout.write(written, directory)
    further = {layout.AREA: maps["area"], layout.SKETCH: t2i.load(out)}
    for folder, network in further.items():
        network.half().save_pretrained(directory / folder)
    lcm.load(out).save(directory / layout.FAST_LORA)
    for look, path in layout.LOOKS.items():
        style.load(out, look).save(directory / path)
    (directory / "training.json").write_text(json.dumps(history(out), indent=2) + "\n")
    return directory


def history(out: Path) -> dict[str, dict[str, float]]:
    """Read off the checkpoints what made the weights: minutes, steps and last losses a stage.

    A stage that is absent was not trained; its weights are those it starts from.
    """
    result = {}
    for name in STAGES:
        path = out / f"{name}.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            last = state["losses"][-100:]
            result[name] = {
                "minutes": round(state["seconds"] / 60, 1),
                "steps": state["step"],
                "loss": round(sum(last) / max(1, len(last)), 5),
            }
    return result


def _weights(trained: Adapter) -> dict[str, Tensor]:
    return decoupled.public_weights(trained.projection, trained.attentions)


def parameters(trained: Adapter, base: UNet2DConditionModel) -> tuple[int, int]:
    """Count what an adapter trains, and the frozen UNet it is trained for."""
    return (
        sum(weight.numel() for weight in trained.parameters()),
        sum(weight.numel() for weight in base.parameters()),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("work"), help="the checkpoints")
    parser.add_argument("--directory", type=Path, default=Path("models/shapes"))
    given = parser.parse_args()
    print(export(given.out, given.directory))
