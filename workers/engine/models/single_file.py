"""Bases in one file of the original layout (ldm, sgm), as custom models are shared.

diffusers converts the tensors; which networks they belong to is read from the file's header first,
since its converter takes what it finds and leaves the rest empty.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors import safe_open
from torch import Tensor, nn

from service.core.catalog import Checkpoint, Source
from service.core.errors import ConfigurationError
from workers.engine.models import hub

UNET: Final = "model.diffusion_model."
VAE: Final = "first_stage_model."
TEXT_ENCODERS: Final[Mapping[str, tuple[str, ...]]] = {
    "Stable Diffusion 1.5": ("cond_stage_model.transformer.",),
    "Stable Diffusion 2": ("cond_stage_model.model.",),
    "SDXL": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    "the SDXL refiner": ("conditioner.embedders.0.model.",),
}
"""Where each family keeps its text encoders."""
OTHERS: Final = {
    "lora_": "a LoRA",
    "lora.": "a LoRA",
    "image_proj.": "an IP-Adapter",
    "control_model.": "a ControlNet",
    "input_hint_block.": "a ControlNet",
    "down_blocks.": "a network in diffusers' layout",
    "encoder.": "a VAE",
}
"""What is shared in files of the same ending, by what its tensors are called."""
FIRST_CONVOLUTION: Final = f"{UNET}input_blocks.0.0.weight"
INPAINTING_CHANNELS: Final = 9
"""Latents, a mask, and the masked picture's latents."""
VELOCITY: Final = "v_pred"
SETTINGS: Final = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")

_UNREAD: Final = re.compile(
    r"^(?!model\.diffusion_model\.|first_stage_model\.|cond_stage_model\.|conditioner\.)|position_ids$"
)
"""Tensors of no network that is served, such as those of a training state."""

CONVERTERS: Final = {"unet": convert_ldm_unet_checkpoint, "vae": convert_ldm_vae_checkpoint}

Shapes = Mapping[str, tuple[int, ...]]


def load(checkpoint: Checkpoint, pipeline: Any, arguments: dict[str, Any], parts: Any) -> Any:
    """Load a pipeline of a class from a file; `arguments` are parts that come from elsewhere.

    `parts` are the networks that the pipeline has, by name. Raises `ConfigurationError` where the
    file is of another kind than its `config`, or lacks tensors.
    """
    folder = checkpoint.subfolder or ""
    name = hub.name_of(checkpoint, folder, checkpoint.weight_name)
    hub.check_safetensors(checkpoint.weight_name, f"checkpoint {name}")
    path = hub.find(checkpoint, folder, checkpoint.weight_name)
    shapes = _header(path, name)
    _check_header(shapes, name, checkpoint, arguments, parts)
    # Where the settings lie in the hub's cache, they have to be there before its folder is given.
    encoders = [f"{part}/config.json" for part in parts if part.startswith("text_encoder")]
    for setting in (*SETTINGS, *encoders):
        hub.find(checkpoint.config, setting)
    config = hub.find(checkpoint.config, "model_index.json").parent
    for part, convert in CONVERTERS.items():
        if part not in arguments:
            _check_tensors(shapes, config / part, parts[part], convert, f"{name}, {part}")
    pipe = hub.reading(
        f"checkpoint {name}",
        pipeline.from_single_file,
        str(path),
        config=str(config),
        local_files_only=True,
        **arguments,
    )
    for part in parts:
        network: nn.Module = getattr(pipe, part)
        missing = [key for key, tensor in network.state_dict().items() if tensor.is_meta]
        hub.check_tensors(f"checkpoint {name}, {part}", missing, ())
    hub.check_files([path], f"checkpoint {name}", _UNREAD)
    pipe.unet.register_to_config(_name_or_path=name)  # for messages
    return pipe


def _check_tensors(shapes: Shapes, config: Path, kind: Any, convert: Any, what: str) -> None:
    """Compare what diffusers makes of a file's tensors, here empty, with the network's."""
    what = f"checkpoint {what}"
    with init_empty_weights():
        network = kind.from_config(kind.load_config(config))
    empty = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    found: dict[str, Tensor] = hub.reading(what, convert, empty, dict(network.config))
    expected = network.state_dict()
    others = [
        (key, found[key].shape, tensor.shape)
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    hub.check_tensors(what, expected.keys() - found.keys(), found.keys() - expected.keys(), others)


def _header(path: Any, name: str) -> Shapes:
    def read() -> Shapes:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)

    shapes: Shapes = hub.reading(f"checkpoint {name}", read)
    return shapes


def _check_header(
    shapes: Shapes, name: str, checkpoint: Checkpoint, arguments: Mapping[str, Any], parts: Any
) -> None:
    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in shapes)

    if not has(UNET):
        found = next(
            (kind for word, kind in OTHERS.items() if any(word in key for key in shapes)), None
        )
        what = f"it looks like {found}" if found else "it has no tensors of a UNet"
        raise ConfigurationError(f"checkpoint {name} is not a base in one file: {what}")
    encoders = "SDXL" if "text_encoder_2" in parts else "Stable Diffusion 1.5"
    families = [family for family, prefixes in TEXT_ENCODERS.items() if all(map(has, prefixes))]
    if encoders == "Stable Diffusion 1.5" and "Stable Diffusion 2" in families:
        encoders = "Stable Diffusion 2"
    if encoders not in families:
        found = families[0] if families else "a family without its text encoders"
        raise ConfigurationError(
            f"checkpoint {name} is of {found}, but `family` in models.yaml needs {encoders}"
        )
    if not has(VAE) and "vae" not in arguments:
        raise ConfigurationError(f"checkpoint {name} holds no VAE: name one as `vae` of the model")
    channels = shapes.get(FIRST_CONVOLUTION, (0, 0))[1]
    config = hub.read_json(checkpoint.config, "unet", "config.json")
    expected = config.get("in_channels")
    if channels != expected:
        kind = " (an inpainting model)" if channels == INPAINTING_CHANNELS else ""
        raise ConfigurationError(
            f"checkpoint {name} has a UNet of {channels} input channels{kind}, but its `config` "
            f"{hub.name_of(checkpoint.config)} is of one with {expected}"
        )


def check_prediction(base: Source, prediction: str) -> None:
    """Raise `ConfigurationError` where a file is marked otherwise than its scheduler predicts.

    Trainers of SDXL mark files that predict velocity with an empty tensor.
    """
    if not isinstance(base, Checkpoint):
        return
    name = hub.name_of(base, base.subfolder or "", base.weight_name)
    path = hub.find(base, base.subfolder or "", base.weight_name)
    if VELOCITY in _header(path, name) and prediction != "v_prediction":
        raise ConfigurationError(
            f"checkpoint {name} predicts velocity (it has {VELOCITY}): set `scheduler_config: "
            "{prediction_type: v_prediction}` for the model in models.yaml"
        )
