"""A written model opens with plain diffusers, under the public repositories' key names."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from training import layout, tiny

# diffusers itself calls transformers' and torch's deprecated names.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> StableDiffusionXLControlNetPipeline:
    controlnet = ControlNetModel.from_pretrained(tiny_model / "controlnets/outline")
    opened = StableDiffusionXLControlNetPipeline.from_pretrained(tiny_model, controlnet=controlnet)
    opened.set_progress_bar_config(disable=True)
    return opened


@pytest.mark.parametrize("file", ["ip-adapter.safetensors", "ip-adapter-plus.safetensors"])
def test_the_three_public_calls_paint_a_picture(
    pipe: StableDiffusionXLControlNetPipeline, tiny_model: Path, file: str
) -> None:
    pipe.load_ip_adapter(str(tiny_model), subfolder="adapters", weight_name=file)
    painted = pipe(
        "a red star",
        image=Image.new("RGB", (64, 64)),
        ip_adapter_image=Image.new("RGB", (90, 70), "red"),
        num_inference_steps=2,
        output_type="pt",
    ).images
    pipe.unload_ip_adapter()
    assert painted.shape == (1, 3, 64, 64)
    assert torch.isfinite(painted).all()


def test_scale_zero_equals_the_base_model(
    pipe: StableDiffusionXLControlNetPipeline, tiny_model: Path
) -> None:
    parts = dict(pipe.components)
    parts.pop("controlnet")
    base = StableDiffusionXLPipeline(**parts)
    base.set_progress_bar_config(disable=True)
    given = {"prompt": "a star", "num_inference_steps": 2, "output_type": "pt"}
    plain = base(**given, generator=torch.Generator().manual_seed(0)).images
    base.load_ip_adapter(str(tiny_model), subfolder="adapters", weight_name=layout.BASE_FILE)
    base.set_ip_adapter_scale(0.0)
    image = Image.new("RGB", (64, 64), "red")
    zero = base(**given, ip_adapter_image=image, generator=torch.Generator().manual_seed(0)).images
    base.set_ip_adapter_scale(1.0)
    one = base(**given, ip_adapter_image=image, generator=torch.Generator().manual_seed(0)).images
    base.unload_ip_adapter()
    assert (plain - zero).abs().max() <= 1e-5
    assert (plain - one).abs().max() > 1e-5


def test_adapter_files_have_the_public_key_names(tiny_model: Path) -> None:
    adapters = tiny_model / "adapters"
    base = set(load_file(adapters / "ip-adapter.safetensors"))
    plus = set(load_file(adapters / "ip-adapter-plus.safetensors"))
    projection = {"proj.weight", "proj.bias", "norm.weight", "norm.bias"}
    assert {k for k in base if k.startswith("image_proj")} == {
        f"image_proj.{k}" for k in projection
    }
    attention = {k for k in base if k.startswith("ip_adapter")}
    assert attention == {k for k in plus if k.startswith("ip_adapter")}
    assert all(re.fullmatch(r"ip_adapter\.\d+\.to_[kv]_ip\.weight", key) for key in attention)
    # Cross-attentions are every second processor: odd numbers.
    assert {int(key.split(".")[1]) % 2 for key in attention} == {1}
    resampler = {k.removeprefix("image_proj.") for k in plus if k.startswith("image_proj")}
    layer = {f"0.{k}" for k in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")}
    layer |= {f"0.{k}.weight" for k in ("to_q", "to_kv", "to_out")}
    layer |= {"1.0.weight", "1.0.bias", "1.1.weight", "1.3.weight"}
    outside = {"latents", "proj_in.weight", "proj_in.bias", "proj_out.weight", "proj_out.bias"}
    outside |= {"norm_out.weight", "norm_out.bias"}
    assert resampler == outside | {f"layers.{n}.{k}" for n in range(4) for k in layer}


def test_every_weight_is_float16(tiny_model: Path) -> None:
    for path in tiny_model.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as opened:
            kinds = {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}, path


def test_the_same_seed_builds_the_same_model(tiny_model: Path, tmp_path: Path) -> None:
    again = tiny.build(tmp_path / "again")
    other = tiny.build(tmp_path / "other", seed=1)
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (again / name).read_bytes() == (tiny_model / name).read_bytes()
    assert (other / name).read_bytes() != (tiny_model / name).read_bytes()
