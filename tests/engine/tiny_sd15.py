"""A model of Stable Diffusion 1.5's layout and file names with very small random weights."""

from pathlib import Path

import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from service.core.catalog import (
    Adapter,
    Catalog,
    ControlNetSource,
    Defaults,
    Limits,
    ModelEntry,
    Source,
)
from training import architecture, tokenizer
from training.architecture import TINY

CONTEXT = TINY.text
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""As in the public repository."""
PREDICTIONS = {"epsilon": "sd15", "v_prediction": "sd15-v"}
"""The model's name in the catalog by what its UNet predicts."""
KINDS = {
    "base": "ip-adapter_sd15",
    "plus": "ip-adapter-plus_sd15",
    "full": "ip-adapter-full-face_sd15",
}


def unet() -> UNet2DConditionModel:
    """SD 1.5's UNet in small: convolutions around its transformers, no added conditions."""
    return UNet2DConditionModel(
        sample_size=TINY.latent_size,
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=CONTEXT,
        norm_num_groups=8,
    )


def _projection(kind: str) -> dict[str, Tensor]:
    if kind == "full":
        layers: nn.Module = nn.Sequential(
            nn.Linear(TINY.vision, TINY.vision),
            nn.GELU(),
            nn.Linear(TINY.vision, CONTEXT),
            nn.LayerNorm(CONTEXT),
        )
        return {f"image_proj.proj.{key}": value for key, value in layers.state_dict().items()}
    shape = TINY
    made = (
        architecture.Resampler(shape.vision, CONTEXT, 4, shape.resampler, shape.resampler_heads)
        if kind == "plus"
        else architecture.LinearProjection(shape.projection, CONTEXT, 4)
    )
    return {f"image_proj.{key}": value for key, value in made.state_dict().items()}


def adapter(kind: str, model: UNet2DConditionModel) -> dict[str, Tensor]:
    """An adapter's tensors by the public key names; every second attention is a cross-attention."""
    tensors = _projection(kind)
    for number, name in enumerate(model.attn_processors):
        if name.endswith("attn2.processor"):
            width = model.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for part in ("to_k_ip", "to_v_ip"):
                tensors[f"ip_adapter.{number}.{part}.weight"] = torch.randn(width, CONTEXT) * 0.3
    return tensors


def pipeline(folder: Path, prediction: str) -> StableDiffusionPipeline:
    """The base model, untrained; its tokenizer's files are written to `folder`."""
    words = tokenizer.write(folder / "tokenizer")
    return StableDiffusionPipeline(
        vae=architecture.vae(TINY),
        text_encoder=architecture.text_encoder(TINY, len(words)),
        tokenizer=words,
        unet=unet(),
        scheduler=DDIMScheduler(**SCHEDULER, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write(folder: Path) -> Catalog:
    """Write both models, their adapters and a ControlNet, and return a catalog that serves them."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        entries = {}
        encoder = architecture.image_encoder(TINY)
        encoder.save_pretrained(folder / "models" / "image_encoder")
        for prediction, name in PREDICTIONS.items():
            pipe = pipeline(folder / name, prediction)
            pipe.save_pretrained(folder / name)
            tokenizer.write(folder / name / "tokenizer")
            control = ControlNetModel.from_unet(
                pipe.unet, conditioning_embedding_out_channels=TINY.control
            )
            for key, weight in control.named_parameters():
                if key.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond")):
                    nn.init.normal_(weight, std=0.2)
            control.save_pretrained(folder / name / "outline")
            adapters = {}
            for kind, file in KINDS.items():
                tensors = {
                    key: value.contiguous() for key, value in adapter(kind, pipe.unet).items()
                }
                save_file(tensors, folder / "models" / f"{name}-{file}.safetensors")
                adapters[kind] = Adapter(
                    path=folder,
                    subfolder="models",
                    weight_name=f"{name}-{file}.safetensors",
                    image_encoder="image_encoder",
                )
            entries[name] = ModelEntry(
                title=name,
                family="sd15",
                base=Source(path=folder / name),
                adapters=adapters,
                controlnets={"outline": ControlNetSource(path=folder / name / "outline")},
                limits=Limits(min_size=64, max_size=128, max_pixels=128 * 128),
                defaults=Defaults(width=64, height=64, adapter="base", steps=4),
            )
    return Catalog(default="sd15", models=entries)
