"""Bases in one file of the original layout equal what diffusers makes of the same file."""

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.core.catalog import Catalog, Checkpoint, ModelEntry, SchedulerConfig, Source
from service.core.errors import ConfigurationError
from service.core.settings import Device
from tests.engine import tiny_lora, tiny_sd15
from tests.engine.conftest import Stepper, job, picture, request
from training import layout, tiny
from training.architecture import TINY
from workers.engine.api import Options
from workers.engine.engine import load_engine
from workers.engine.schedulers import CLASSES

SAME_AS_PLAIN = 1e-4
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in.": "input_blocks.0.0.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}
VAE = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "resnets": "block",
    "down_blocks": "down",
}


def ldm_unet(unet: Any) -> dict[str, Tensor]:
    """A UNet's tensors by their names in the original layout."""
    each = unet.config.layers_per_block + 1
    places = dict(UNET)
    for number, block in enumerate(unet.down_blocks):
        for index in range(len(block.resnets)):
            at = f"input_blocks.{1 + number * each + index}."
            places[f"down_blocks.{number}.resnets.{index}."] = f"{at}0."
            places[f"down_blocks.{number}.attentions.{index}."] = f"{at}1."
        places[f"down_blocks.{number}.downsamplers.0.conv."] = (
            f"input_blocks.{each * (number + 1)}.0.op."
        )
    for number, block in enumerate(unet.up_blocks):
        for index in range(len(block.resnets)):
            at = f"output_blocks.{number * each + index}."
            places[f"up_blocks.{number}.resnets.{index}."] = f"{at}0."
            places[f"up_blocks.{number}.attentions.{index}."] = f"{at}1."
        last = 2 if hasattr(block, "attentions") else 1
        places[f"up_blocks.{number}.upsamplers.0."] = f"{at}{last}."
    named = {}
    for key, tensor in unet.state_dict().items():
        start = next(place for place in places if key.startswith(place))
        rest = key.removeprefix(start)
        if ".resnets." in start or "mid_block.resnets" in start:
            part, _, end = rest.partition(".")
            rest = f"{RESNET[part]}.{end}"
        named[f"model.diffusion_model.{places[start]}{rest}"] = tensor
    return named


def ldm_vae(vae: Any) -> dict[str, Tensor]:
    """A VAE's tensors by their names in the original layout."""
    last = len(vae.config.block_out_channels) - 1
    named = {}
    for key, tensor in vae.state_dict().items():
        renamed = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{last - int(found[1])}", key)
        for ours, theirs in VAE.items():
            renamed = renamed.replace(ours, theirs)
        named[f"first_stage_model.{renamed}"] = tensor
    return named


def clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    """A text encoder's tensors as OpenAI's CLIP is kept."""
    return {
        f"{prefix}transformer.text_model.{key.removeprefix('text_model.')}": tensor
        for key, tensor in encoder.state_dict().items()
    }


def open_clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    """A text encoder's tensors by OpenCLIP's names."""
    weights = {key.removeprefix("text_model."): w for key, w in encoder.state_dict().items()}
    named = {
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "ln_final.weight": weights["final_layer_norm.weight"],
        "ln_final.bias": weights["final_layer_norm.bias"],
        "text_projection": weights["text_projection.weight"].T,
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc"}
    names |= {"mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    for layer in range(encoder.config.num_hidden_layers):
        old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for part in ("weight", "bias"):
            for ours, theirs in names.items():
                named[f"{new}.{theirs}.{part}"] = weights[f"{old}.{ours}.{part}"]
            named[f"{new}.attn.in_proj_{part}"] = torch.cat(
                [weights[f"{old}.self_attn.{letter}_proj.{part}"] for letter in "qkv"]
            )
    return {f"{prefix}model.{key}": tensor for key, tensor in named.items()}


def write(pipe: Any, path: Path) -> Path:
    """Write a pipeline as one file of the original layout."""
    tensors = ldm_unet(pipe.unet) | ldm_vae(pipe.vae)
    if hasattr(pipe, "text_encoder_2"):
        tensors |= clip(pipe.text_encoder, "conditioner.embedders.0.")
        tensors |= open_clip(pipe.text_encoder_2, "conditioner.embedders.1.")
    else:
        tensors |= clip(pipe.text_encoder, "cond_stage_model.")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


@dataclass(frozen=True)
class Base:
    """A file, the folder of its settings (without weights), and an entry that serves both."""

    file: Path
    config: Path
    entry: ModelEntry
    pipeline: Any


@pytest.fixture(scope="module")
def bases(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Base]:
    folder = tmp_path_factory.mktemp("files")
    # The text encoders differ in width, by which diffusers tells them apart.
    with torch.random.fork_rng():
        torch.manual_seed(5)
        parts = tiny.parts(replace(TINY, text_2=32, projection=32))
    layout.write(parts, folder / "sdxl")
    sdxl = catalog.models["tiny"]
    adapters = {"base": sdxl.adapters["base"].model_copy(update={"path": folder / "sdxl"})}
    sdxl = sdxl.model_copy(update={"adapters": adapters, "controlnets": {}})
    entries = {"sdxl": sdxl} | {
        name: entry.model_copy(update={"controlnets": {}})
        for name, entry in tiny_sd15.write(folder).models.items()
    }
    bases = {}
    for name, entry in entries.items():
        kind: Any = StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline
        pipe = kind.from_pretrained(folder / name)
        file = write(pipe, folder / f"{name}.safetensors")
        config = folder / f"{name}-config"
        shutil.copytree(folder / name, config, ignore=shutil.ignore_patterns("*.safetensors"))
        one = Checkpoint(path=folder, weight_name=file.name, config=Source(path=config))
        served = entry.model_copy(update={"base": one})
        bases[name] = Base(file, config, served, kind)
    return bases


def serve(entry: ModelEntry) -> Iterator[Stepper]:
    """An engine with the entry as its model."""
    catalog = Catalog(default="tiny", models={"tiny": entry})
    engine = load_engine(catalog, Options(slots=2, threads=1), device=Device.CPU)
    yield Stepper(engine)
    engine.stop()


CASES = {
    "SDXL, velocity": ("sdxl", SchedulerConfig()),
    "SDXL, epsilon": (
        "sdxl",
        SchedulerConfig(prediction_type="epsilon", timestep_spacing="leading"),
    ),
    "SD 1.5, epsilon": ("sd15", SchedulerConfig()),
    "SD 1.5, velocity": ("sd15-v", SchedulerConfig(rescale_betas_zero_snr=True)),
}


@pytest.mark.parametrize(("name", "scheduler"), CASES.values(), ids=CASES.keys())
def test_a_file_gives_what_diffusers_makes_of_it(
    bases: Mapping[str, Base], name: str, scheduler: SchedulerConfig
) -> None:
    base = bases[name]
    wanted = request(prompt="a red star", negative_prompt="blue")
    for stepper in serve(base.entry.model_copy(update={"scheduler_config": scheduler})):
        stepper.run(job(wanted))
        ours = stepper.decoded("job")
    pipe = base.pipeline.from_single_file(
        str(base.file), config=str(base.config), local_files_only=True, torch_dtype=torch.float32
    )
    adapter = base.entry.adapters["base"]
    pipe.load_ip_adapter(adapter.path, subfolder=adapter.subfolder, weight_name=adapter.weight_name)
    pipe.set_ip_adapter_scale(wanted.ip_scale[0])
    pipe.scheduler = CLASSES[wanted.scheduler].from_config(
        {**pipe.scheduler.config, "_use_default_values": []},
        **scheduler.model_dump(exclude_none=True),
    )
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        prompt=wanted.prompt,
        negative_prompt=wanted.negative_prompt,
        ip_adapter_image=picture(0),
        width=wanted.width,
        height=wanted.height,
        num_inference_steps=wanted.steps,
        guidance_scale=wanted.guidance_scale,
        generator=torch.Generator().manual_seed(wanted.seed),
        output_type="np",
    ).images
    assert np.abs(ours - theirs).max() <= SAME_AS_PLAIN


def _without(*prefixes: str) -> Any:
    return lambda tensors: {k: t for k, t in tensors.items() if not k.startswith(prefixes)}


def _inpainting(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    key = "model.diffusion_model.input_blocks.0.0.weight"
    widened = torch.cat([tensors[key]] * 3, dim=1)[:, :9]
    return {**tensors, key: widened.contiguous()}


def _velocity(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "v_pred": torch.zeros(1)}


WRONG = {
    "SD 1.5 as SDXL": ("sd15", "sdxl", dict, "sd15.safetensors is of Stable Diffusion 1.5.*SDXL"),
    "SDXL as SD 1.5": ("sdxl", "sd15", dict, "sdxl.safetensors is of SDXL.*Stable Diffusion 1.5"),
    "the refiner": (
        "sdxl",
        "sdxl",
        lambda tensors: {
            key.replace("embedders.1.", "embedders.0."): tensor
            for key, tensor in tensors.items()
            if "embedders.0." not in key
        },
        "the SDXL refiner",
    ),
    "an inpainting file": (
        "sdxl",
        "sdxl",
        _inpainting,
        r"9 input channels \(an inpainting model\)",
    ),
    "no VAE": ("sdxl", "sdxl", _without("first_stage_model."), "holds no VAE"),
    "half a VAE": (
        "sdxl",
        "sdxl",
        _without("first_stage_model.decoder.mid"),
        "vae: .*decoder.mid_block",
    ),
    "half a UNet": (
        "sd15",
        "sd15",
        _without("model.diffusion_model.output_blocks.3"),
        "unet: .*up_blocks",
    ),
    "half a text encoder": (
        "sdxl",
        "sdxl",
        _without("conditioner.embedders.1.model.transformer.resblocks.1.ln_1"),
        "text_encoder_2: .*layers.1",
    ),
    "only the UNet": (
        "sdxl",
        "sdxl",
        _without("conditioner", "first_stage_model"),
        "a family without its text encoders",
    ),
    "velocity without saying so": ("sd15", "sd15", _velocity, "prediction_type: v_prediction"),
}


@pytest.mark.parametrize(("source", "family", "change", "named"), WRONG.values(), ids=WRONG.keys())
def test_a_file_of_another_kind_is_refused_by_name(
    bases: Mapping[str, Base], tmp_path: Path, source: str, family: str, change: Any, named: str
) -> None:
    spoilt = tmp_path / bases[source].file.name
    save_file(change(load_file(bases[source].file)), spoilt)
    _refused(bases[family], spoilt, named)


@pytest.mark.parametrize("kind", ["lora", "adapter", "cut", "pickled"])
def test_a_file_that_is_no_base_is_refused_by_name(
    bases: Mapping[str, Base], tmp_path: Path, kind: str
) -> None:
    base = bases["sdxl"]
    file = tmp_path / "other.safetensors"
    if kind == "lora":
        folder = base.entry.adapters["base"].path
        tiny_lora.kohya(StableDiffusionXLPipeline.from_pretrained(folder), file)
    elif kind == "adapter":
        adapter = base.entry.adapters["base"]
        shutil.copy(Path(str(adapter.path), "adapters", adapter.weight_name), file)
    elif kind == "cut":
        file.write_bytes(base.file.read_bytes()[:-100])
    else:
        file = tmp_path / "model.ckpt"
        file.write_bytes(b"pickle")
    named = {"lora": "looks like a LoRA", "adapter": "looks like an IP-Adapter"}
    named |= {"cut": "could not be loaded", "pickled": "not a .safetensors file"}
    _refused(base, file, f"{file.name}.*{named[kind]}")


def _refused(base: Base, file: Path, named: str) -> None:
    checkpoint = base.entry.base.model_copy(update={"path": file.parent, "weight_name": file.name})
    with pytest.raises(ConfigurationError, match=named):
        for _ in serve(base.entry.model_copy(update={"base": checkpoint})):
            pass
