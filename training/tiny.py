"""A model of the bundled one's layout and file names with very small random weights.

Built in a second or two for tests that need every file but no sense: `python -m training.tiny DIR`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from diffusers import ControlNetModel

from training import architecture, decoupled, layout, tokenizer
from training.architecture import Architecture


def parts(shape: Architecture) -> layout.Parts:
    """Make every network of a model, untrained, with the adapters' public key names."""
    with tempfile.TemporaryDirectory() as scratch:
        words = tokenizer.write(Path(scratch))
    unet = architecture.unet(shape)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=shape.control)
    for name, weight in controlnet.named_parameters():
        # Zero as they start, these would hide what the map does.
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding")):
            torch.nn.init.normal_(weight, std=0.2)
    plain = unet.attn_processors  # set_attn_processor empties the dict it is given
    adapters = {}
    for plus in (False, True):
        projection = architecture.projection(shape, plus=plus)
        attached = decoupled.attach(unet, architecture.image_tokens(shape, plus=plus))
        adapters[plus] = decoupled.public_weights(projection, attached)
        unet.set_attn_processor(dict(plain))
    return layout.Parts(
        vae=architecture.vae(shape),
        unet=unet,
        tokenizer=words,
        text_encoder=architecture.text_encoder(shape, len(words)),
        text_encoder_2=architecture.text_encoder_2(shape, len(words)),
        image_encoder=architecture.image_encoder(shape),
        adapter=adapters[False],
        adapter_plus=adapters[True],
        controlnet=controlnet,
    )


def build(directory: Path, *, seed: int = 0) -> Path:
    """Write the tiny model to `directory` and return it. The same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return layout.write(parts(architecture.TINY), directory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    print(build(parser.parse_args().directory))
