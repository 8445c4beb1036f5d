"""Files that lack tensors, are cut off or are another kind's are refused by name at start-up."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, T2IAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.core.catalog import Catalog, ControlNetSource, Source
from service.core.errors import ConfigurationError
from workers.engine.attention import sdpa
from workers.engine.models import FAMILIES, base

Change = Callable[[Path], None]
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
OUTLINE = "controlnets/outline/diffusion_pytorch_model.safetensors"
ENCODER = "adapters/image_encoder/model.safetensors"
BASE = "adapters/ip-adapter.safetensors"
PLUS = "adapters/ip-adapter-plus.safetensors"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil, with a T2I-Adapter."""
    copied = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    t2i = T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=8)
    t2i.save_pretrained(copied / "t2i")
    return copied


def load(catalog: Catalog, folder: Path, **changes: Any) -> base.Model:
    """Load the catalog's model from `folder`."""
    entry = catalog.models["tiny"]
    adapters = {
        name: adapter.model_copy(update={"path": folder})
        for name, adapter in entry.adapters.items()
    }
    moved = {
        "base": Source(path=folder),
        "adapters": adapters,
        "controlnets": {"outline": ControlNetSource(path=folder / "controlnets" / "outline")},
        "t2i_adapters": {"sketch": Source(path=folder / "t2i")},
    }
    return FAMILIES[entry.family](
        "tiny",
        entry.model_copy(update=moved | changes),
        device=torch.device("cpu"),
        kernel=sdpa,
        on_stage=lambda _: None,
    )


def tensors(file: str, change: Callable[[dict[str, Tensor]], None]) -> Change:
    """Change the tensors of a file."""

    def spoil(folder: Path) -> None:
        content = load_file(folder / file)
        change(content)
        whole = {key: value.contiguous() for key, value in content.items()}
        save_file(whole, folder / file, metadata={"format": "pt"})

    return spoil


def drop(file: str, *patterns: str) -> Change:
    """Delete the first tensor that each pattern is found in."""

    def change(content: dict[str, Tensor]) -> None:
        for pattern in patterns:
            del content[next(key for key in sorted(content) if re.search(pattern, key))]

    return tensors(file, change)


def add(file: str, key: str) -> Change:
    """Add a tensor."""
    return tensors(file, lambda content: content.update({key: torch.zeros(3)}))


def reshape(file: str, pattern: str) -> Change:
    """Give a tensor another shape."""

    def change(content: dict[str, Tensor]) -> None:
        key = next(key for key in sorted(content) if re.search(pattern, key))
        content[key] = torch.cat([content[key]] * 2)

    return tensors(file, change)


def cut(file: str, share: float = 0.5) -> Change:
    """Cut a file off."""

    def spoil(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(len(content) * share)])

    return spoil


def remove(*files: str) -> Change:
    """Delete files."""

    def spoil(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return spoil


def copy(source: str, target: str) -> Change:
    """Put one file or folder in the place of another."""

    def spoil(folder: Path) -> None:
        if (folder / source).is_dir():
            shutil.rmtree(folder / target)
            shutil.copytree(folder / source, folder / target)
        else:
            shutil.copy(folder / source, folder / target)

    return spoil


def config(file: str, **values: object) -> Change:
    """Change a configuration."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **values}))

    return spoil


def refill(file: str, pattern: str, make: Callable[[Tensor], Tensor]) -> Change:
    """Put something else in the place of each tensor with such a name."""

    def change(content: dict[str, Tensor]) -> None:
        keys = [key for key in content if re.search(pattern, key)]
        assert keys
        content.update({key: make(content[key]) for key in keys})

    return tensors(file, change)


def one(value: float) -> Callable[[Tensor], Tensor]:
    """A tensor with one other value, its last."""

    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed.view(-1)[-1] = value
        return changed

    return change


def text(file: str, content: str) -> Change:
    """Replace a file."""

    def spoil(folder: Path) -> None:
        (folder / file).write_text(content)

    return spoil


def both(*changes: Change) -> Change:
    """One change after another."""

    def spoil(folder: Path) -> None:
        for change in changes:
            change(folder)

    return spoil


def _cut_merges(folder: Path) -> None:
    file = folder / "tokenizer" / "merges.txt"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-5]))


def _tiny_vae(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    AutoencoderTiny().save_pretrained(folder / "vae")


SPOILT: dict[str, tuple[Change, str]] = {
    # Tensors that are missing.
    "unet lacks": (drop(UNET, "to_q", "conv_out"), rf"{UNET}.*2 .*missing.*conv_out.*to_q"),
    "unet's last": (drop(UNET, "conv_norm_out.bias"), f"{UNET}.*conv_norm_out.bias"),
    "vae lacks": (drop(VAE, "decoder.*weight"), f"{VAE}.*decoder"),
    "text encoder lacks": (
        drop("text_encoder/model.safetensors", "layers.1.*weight"),
        "text_encoder/model.safetensors.*layers.1",
    ),
    "second text encoder lacks": (
        drop("text_encoder_2/model.safetensors", "text_projection"),
        "text_encoder_2/model.safetensors.*text_projection",
    ),
    "image encoder lacks": (drop(ENCODER, "layers.1.*bias"), f"{ENCODER}.*layers.1"),
    "image encoder lacks the projection": (
        drop(ENCODER, "visual_projection"),
        f"{ENCODER}.*visual_projection",
    ),
    "controlnet lacks": (drop(OUTLINE, "controlnet_mid"), f"{OUTLINE}.*controlnet_mid"),
    "t2i lacks": (
        drop("t2i/diffusion_pytorch_model.safetensors", "conv_in.weight"),
        "t2i/diffusion.*conv_in.weight",
    ),
    "adapter lacks a norm": (drop(BASE, "norm.weight"), f"{BASE}.*image_proj.norm.weight"),
    "adapter lacks a bias": (drop(BASE, "proj.bias"), f"{BASE}.*image_proj.proj.bias"),
    "plus lacks a layer": (drop(PLUS, "layers.3.1.3"), rf"{PLUS}.*image_proj.layers.3.1.3.weight"),
    "plus lacks a norm": (drop(PLUS, "norm_out.bias"), f"{PLUS}.*norm_out.bias"),
    # Tensors that are left over.
    "unet has more": (add(UNET, "control_add_embedding.weight"), f"{UNET}.*left over.*control_add"),
    "controlnet has more": (add(OUTLINE, "task_embedding"), f"{OUTLINE}.*left over.*task_embed"),
    "text encoder has more": (
        add("text_encoder/model.safetensors", "text_model.encoder.layers.2.mlp.fc1.bias"),
        "text_encoder/model.safetensors.*left over.*layers.2",
    ),
    "adapter has more pairs": (
        add(BASE, "ip_adapter.99.to_k_ip.weight"),
        f"{BASE}.*UNet .*ip_adapter.99.to_k_ip.*another base model",
    ),
    "adapter has more": (add(PLUS, "image_proj.time.weight"), f"{PLUS}.*image_proj.time.weight"),
    # Tensors of other shapes.
    "unet's shape": (reshape(UNET, "conv_in.weight"), rf"{UNET}.*conv_in.weight.*\(32, 4, 3, 3\)"),
    "vae's shape": (reshape(VAE, "conv_in.weight"), f"{VAE}.*conv_in.weight"),
    "text encoder's shape": (
        reshape("text_encoder/model.safetensors", "token_embedding"),
        "text_encoder/model.safetensors.*token_embedding",
    ),
    "image encoder's shape": (reshape(ENCODER, "position_embedding"), f"{ENCODER}.*position_emb"),
    "adapter's shape": (reshape(PLUS, "norm_out.bias"), f"{PLUS}.*norm_out.bias"),
    # Files that are cut off.
    "unet cut": (cut(UNET), UNET),
    "unet's header cut": (cut(UNET, 0.001), UNET),
    "vae empty": (cut(VAE, 0), VAE),
    "text encoder cut": (cut("text_encoder_2/model.safetensors"), "text_encoder_2/model"),
    "image encoder cut": (cut(ENCODER), ENCODER),
    "controlnet cut": (cut(OUTLINE), OUTLINE),
    "adapter cut": (cut(BASE), BASE),
    "index cut": (cut("model_index.json"), "model_index.json"),
    "unet's config cut": (cut("unet/config.json"), "unet/config.json"),
    "vae's config cut": (cut("vae/config.json"), "vae/config.json"),
    "text encoder's config cut": (cut("text_encoder/config.json"), "text_encoder/config.json"),
    "encoder's config cut": (cut("adapters/image_encoder/config.json"), "image_encoder/config"),
    "scheduler's config cut": (cut("scheduler/scheduler_config.json"), "scheduler"),
    "tokenizer cut": (cut("tokenizer/tokenizer.json"), "tokenizer"),
    "tokenizer's config cut": (cut("tokenizer_2/tokenizer_config.json"), "tokenizer_2"),
    "merges cut": (
        both(remove("tokenizer/tokenizer.json"), cut("tokenizer/merges.txt")),
        "tokenizer.*Merges",
    ),
    "merges cut at a line": (
        both(remove("tokenizer/tokenizer.json"), _cut_merges),
        "tokenizer.*merges",
    ),
    "vocabulary cut": (
        both(remove("tokenizer/tokenizer.json"), cut("tokenizer/vocab.json")),
        "tokenizer",
    ),
    # Files that are missing.
    "no unet's config": (remove("unet/config.json"), "unet/config.json"),
    "no unet": (remove(UNET), UNET),
    "no vae": (remove(VAE), VAE),
    "no vae's config": (remove("vae/config.json"), "vae/config.json"),
    "no text encoder": (remove("text_encoder/model.safetensors"), "text_encoder/model"),
    "no text encoder's config": (remove("text_encoder_2/config.json"), "text_encoder_2/config"),
    "no scheduler": (remove("scheduler/scheduler_config.json"), "scheduler"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer_2"), "tokenizer_2"),
    "no vocabulary": (
        remove("tokenizer/tokenizer.json", "tokenizer/vocab.json", "tokenizer/merges.txt"),
        "tokenizer",
    ),
    "no merges": (remove("tokenizer/tokenizer.json", "tokenizer/merges.txt"), "tokenizer.*merges"),
    "no tokenizer's config": (remove("tokenizer/tokenizer_config.json"), "tokenizer.*16"),
    "no controlnet's config": (remove("controlnets/outline/config.json"), "outline/config.json"),
    # Another kind in its place.
    "controlnet as unet": (copy("controlnets/outline", "unet"), "unet.*ControlNetModel"),
    "unet as controlnet": (copy("unet", "controlnets/outline"), "outline.*UNet2DConditionModel"),
    "controlnet's weights as unet": (copy(OUTLINE, UNET), f"{UNET}.*missing.*left over"),
    "vae's weights as unet": (copy(VAE, UNET), f"{UNET}.*missing.*left over"),
    "taesd as vae": (_tiny_vae, "vae.*AutoencoderTiny"),
    "second text encoder as first": (
        copy("text_encoder_2", "text_encoder"),
        "text_encoder/model.safetensors.*left over.*text_projection",
    ),
    "first text encoder as second": (
        copy("text_encoder", "text_encoder_2"),
        "text_encoder_2/model.safetensors.*missing.*text_projection",
    ),
    "image encoder as text encoder": (
        copy("adapters/image_encoder", "text_encoder"),
        "text_encoder",
    ),
    "text encoder as image encoder": (
        copy("text_encoder_2", "adapters/image_encoder"),
        "image_encoder",
    ),
    "controlnet as t2i": (copy("controlnets/outline", "t2i"), "t2i.*ControlNetModel"),
    "union controlnet": (
        config("controlnets/outline/config.json", _class_name="ControlNetUnionModel"),
        "outline.*ControlNetUnionModel",
    ),
    "controlnet as adapter": (copy(OUTLINE, BASE), f"{BASE}.*base, Plus, full"),
    # Numbers that are none.
    **{
        f"{file} {number}": (
            refill(file, pattern, one(float(number))),
            f"{file}.*1 tensors are no finite.*{pattern}",
        )
        for file, pattern in (
            (UNET, "conv_out.weight"),
            (VAE, "decoder.conv_out.bias"),
            ("text_encoder/model.safetensors", "layers.0.mlp.fc1.weight"),
            (ENCODER, "visual_projection.weight"),
            (OUTLINE, "controlnet_mid_block.weight"),
            ("t2i/diffusion_pytorch_model.safetensors", "conv_in.weight"),
            (BASE, "image_proj.norm.weight"),
        )
        for number in ("nan", "inf", "-inf")
    },
    "unet int8": (refill(UNET, "", lambda t: t.to(torch.int8)), f"{UNET}.*no finite floating"),
    "unet one int64": (refill(UNET, "conv_in.weight", Tensor.long), f"{UNET}.*conv_in.weight"),
    "unet one bool": (refill(UNET, "conv_in.bias", Tensor.bool), f"{UNET}.*conv_in.bias"),
    "adapter int32": (refill(BASE, "", Tensor.int), f"{BASE}.*no finite floating"),
    # Tensors of another rank.
    **{
        f"rank of {pattern}": (refill(file, pattern, make), f"{file}.*{pattern}")
        for file, pattern, make in (
            (PLUS, "image_proj.latents", lambda t: torch.zeros(())),
            (PLUS, "layers.0.0.to_q.weight", lambda t: torch.zeros(())),
            (PLUS, "proj_in.weight", lambda t: t[0].clone()),
            (PLUS, "norm_out.weight", lambda t: torch.zeros(())),
            (BASE, "proj.weight", lambda t: t[0].clone()),
            (BASE, "image_proj.norm.weight", lambda t: torch.zeros(())),
            (BASE, "ip_adapter.1.to_k_ip.weight", lambda t: torch.zeros(())),
        )
    },
    # Configurations that are none.
    **{
        f"{file} := {content[:4]}": (text(file, content), re.escape(file))
        for file in (
            "model_index.json",
            "unet/config.json",
            "vae/config.json",
            "text_encoder/config.json",
            "adapters/image_encoder/config.json",
            "controlnets/outline/config.json",
            "t2i/config.json",
            "scheduler/scheduler_config.json",
            "tokenizer/tokenizer_config.json",
        )
        for content in ("[" * 100_000, "[]", "null", '"x"', "5")
    },
    # Settings that nothing can be done with.
    **{
        f"scaling_factor {value!r}": (
            config("vae/config.json", scaling_factor=value),
            "vae: scaling_factor in config.json is",
        )
        for value in (None, 0, float("nan"), float("inf"), -1, "x", True, [0.18])
    },
    "latents_std": (
        config("vae/config.json", latents_mean=[0] * 4, latents_std=[1, 1, 0, 1]),
        "vae: latents_std",
    ),
    "latents_mean": (
        config("vae/config.json", latents_mean=[0] * 3, latents_std=[1] * 4),
        "vae: latents_mean",
    ),
    **{
        f"scheduler {key}": (
            config("scheduler/scheduler_config.json", **{key: value}),
            f"scheduler .*{value}",
        )
        for key, value in {
            "_class_name": "Nope",
            "steps_offset": "x",
            "num_train_timesteps": "1000",
            "use_karras_sigmas": "x",
            "beta_start": "x",
        }.items()
    },
    "channel order": (
        config("controlnets/outline/config.json", controlnet_conditioning_channel_order="nope"),
        "outline.*nope",
    ),
    "time ids": (config("unet/config.json", addition_time_embed_dim=0), "added conditions"),
    # Configurations of something else.
    "config's depth": (config("text_encoder/config.json", num_hidden_layers=1), "text_encoder"),
    "config's width": (config("unet/config.json", block_out_channels=[16, 64]), UNET),
    "config's context": (
        config("unet/config.json", cross_attention_dim=64),
        UNET,
    ),
    "tokenizer's length": (
        config("tokenizer/tokenizer_config.json", model_max_length=77),
        "tokenizer.*77.*16",
    ),
    "another tokenizer": (
        lambda folder: _without_words(folder / "tokenizer"),
        "tokenizer.*tokens",
    ),
}


def _without_words(folder: Path) -> None:
    """A tokenizer with fewer merges and so a smaller vocabulary, all of one piece."""
    content = json.loads((folder / "tokenizer.json").read_text())
    model = content["model"]
    pair = model["merges"].pop()
    last = "".join(pair) if isinstance(pair, list) else pair.replace(" ", "")
    number = model["vocab"].pop(last)
    model["vocab"] = {key: at - (at > number) for key, at in model["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] -= 1
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_file_is_named(catalog: Catalog, folder: Path, name: str) -> None:
    """The message names the file and, where there are any, the tensors."""
    change, named = SPOILT[name]
    change(folder)
    with pytest.raises(ConfigurationError, match=named) as refused:
        load(catalog, folder)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_the_variant_of_an_adapter_is_that_of_its_encoder(catalog: Catalog, folder: Path) -> None:
    """Its own file is named in full."""
    whole = folder / ENCODER
    whole.rename(whole.with_name("model.fp16.safetensors"))
    adapter = catalog.models["tiny"].adapters["base"]
    adapter = adapter.model_copy(update={"path": folder, "variant": "fp16"})
    load(catalog, folder, adapters={"base": adapter})
    whole.with_name("model.fp16.safetensors").rename(whole)
    with pytest.raises(
        ConfigurationError, match=r"image_encoder/model\.fp16\.safetensors does not"
    ):
        load(catalog, folder, adapters={"base": adapter})
