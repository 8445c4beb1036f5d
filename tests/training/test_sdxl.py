"""The trainer for a real SDXL, on a tiny base of the same layout and a folder of pictures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from training import drawing, sdxl, world
from training.folder import Folder

# diffusers itself calls transformers' and torch's deprecated names.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    drawn = drawing.draw(world.sample(4, torch.Generator().manual_seed(0)), 80)
    rows = []
    for index, pixels in enumerate(drawn):
        name = f"{index}.png"
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).crop((0, 0, 80, 70)).save(folder / name)
        rows.append(json.dumps({"file_name": name, "text": f"picture {index}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def recipe(tiny_model: Path, pictures: Path, tmp_path: Path) -> sdxl.Recipe:
    return sdxl.Recipe(
        base=tiny_model,
        image_encoder=tiny_model / "adapters/image_encoder",
        pictures=pictures,
        out=tmp_path / "out",
        steps=3,
        batch=2,
        size=64,
        save_every=2,
    )


def test_a_folder_gives_cropped_pictures_and_their_sizes(pictures: Path) -> None:
    example = Folder(pictures, 64)[1]
    assert example.pixels.shape == (3, 64, 64)
    assert example.prompt.shape == (3, 224, 224)
    assert example.text == "picture 1"
    # 80 x 70 covers 64 x 64 as 73 x 64: 4 columns are cut off at the left.
    assert example.time_ids.tolist() == [70, 80, 0, 4, 64, 64]


@pytest.mark.parametrize("plus", [False, True])
def test_a_trained_file_loads_into_plain_diffusers(
    recipe: sdxl.Recipe, tiny_model: Path, *, plus: bool
) -> None:
    file = sdxl.train(replace(recipe, plus=plus))
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_model)
    pipeline.load_ip_adapter(
        str(file.parent),
        subfolder="",
        weight_name=file.name,
        image_encoder_folder=str(tiny_model / "adapters/image_encoder"),
    )
    attention = load_file(file)["ip_adapter.1.to_k_ip.weight"].float()
    start = pipeline.unet.get_submodule("down_blocks.1.attentions.0.transformer_blocks.0.attn2")
    assert not torch.equal(attention, start.to_k.weight)
    assert torch.allclose(attention, start.to_k.weight, atol=1e-2)


def test_training_goes_on_from_its_checkpoint(recipe: sdxl.Recipe) -> None:
    sdxl.train(recipe)
    kept = recipe.out / "checkpoints"
    assert [path.name for path in kept.iterdir()] == ["checkpoint_0"]
    weights = load_file(kept / "checkpoint_0" / sdxl.TRAINED)
    assert not [key for key in weights if "down_blocks" in key]
    first = (recipe.out / "ip-adapter.safetensors").read_bytes()
    sdxl.train(replace(recipe, steps=4))
    assert (recipe.out / "ip-adapter.safetensors").read_bytes() != first
