"""LoRA (arXiv 2106.09685) in kohya's and diffusers' key formats, for UNets and text encoders.

A low-rank update is either added to the outputs of a layer for some rows of a batch, so that rows
with different LoRAs share a forward pass, or fused into the weights at load.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.core.catalog import Lora
from service.core.errors import ConfigurationError
from workers.engine.models import checks, hub
from workers.engine.models.layers import SelfAttention

PARTS: Final = ("unet", "text_encoder", "text_encoder_2")
"""Attributes of a pipeline that a LoRA may change."""
_DOWN_OR_UP: Final = re.compile(
    r"(?:[._]lora|\.lora_linear_layer)?\.(down|up)\.weight$|\.lora_(A|B)\.(?:default\.)?weight$"
)
_ALPHA: Final = re.compile(r"\.alpha$")
_ONCE: Final = re.compile(r"attn2\.to_[kv]$|^time_embedding\.|^add_embedding\.")
"""Layers of a UNet that run once a job."""
_TEXT_NAMES: Final = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What a LoRA adds to a layer's output: `up(down(input))`.

    `down` is `(rank, in)` and `up` `(out, rank)`; for convolutions `(rank, in, k, k)` and
    `(out, rank, 1, 1)`.
    """

    down: Tensor
    up: Tensor

    def add(self, layer: nn.Module, hidden: Tensor, output: Tensor) -> None:
        """Add the update for `hidden`, the layer's input, to its `output` in place."""
        up = self.up.flatten(1)
        if isinstance(layer, nn.Conv2d):
            small = functional.conv2d(
                hidden, self.down, None, layer.stride, layer.padding, layer.dilation
            ).permute(0, 2, 3, 1)
            output = output.permute(0, 2, 3, 1)
        else:
            small = functional.linear(hidden, self.down)
        flat = output.flatten(0, -2)
        if flat.data_ptr() == output.data_ptr():
            # One product that adds: the update itself is never written to memory.
            flat.addmm_(small.flatten(0, -2), up.t())
        else:
            output += functional.linear(small, up)


Updates = Mapping[nn.Module, LowRank]
RowUpdates = Mapping[nn.Module, Sequence[tuple[slice, LowRank]]]
"""For each layer, which rows of a batch get which update."""


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """Implements `base.LoadedLora`."""

    fingerprint: str
    once: Updates
    each_step: Updates
    changes_text: bool


@dataclass(slots=True)
class _Pair:
    """The two matrices of one layer while they are collected."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None
    names: list[str] = field(default_factory=list)


def combine(updates: Sequence[tuple[Updates, float]]) -> Updates:
    """The sum of several LoRAs' updates, each with its scale."""
    layers = dict.fromkeys(layer for one, _ in updates for layer in one)
    combined = {}
    for layer in layers:
        parts = [(one[layer], scale) for one, scale in updates if layer in one]
        combined[layer] = LowRank(
            torch.cat([low.down for low, _ in parts]),
            torch.cat([low.up * scale for low, scale in parts], dim=1),
        )
    return combined


@contextmanager
def updated(updates: RowUpdates) -> Iterator[None]:
    """Inside, layers add these updates to their outputs. Only for the engine's thread."""
    with ExitStack() as stack:
        for layer, rows in updates.items():
            stack.callback(layer.register_forward_hook(_hook(rows)).remove)
        yield


def everywhere(updates: Updates) -> RowUpdates:
    """The same updates for every row."""
    return {layer: [(slice(None), low)] for layer, low in updates.items()}


def _hook(rows: Sequence[tuple[slice, LowRank]]) -> Any:
    def add(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        hidden = arguments[0]
        for part, low in rows:
            low.add(layer, hidden[part], output[part])

    return add


def load(lora: Lora, pipe: Any, pipeline: Any) -> LoraWeights:
    """Load a LoRA for a pipeline whose UNet has this engine's layers.

    `pipeline` is its class. Raises `ConfigurationError` where it does not fit.
    """
    path, name = _file(lora)
    once: dict[nn.Module, list[LowRank]] = {}
    each_step: dict[nn.Module, list[LowRank]] = {}
    changes_text = False
    for part, layer_path, read in _read(path, name, pipe, pipeline):
        layer, low = _placed(getattr(pipe, part), layer_path, read, name, part)
        changes_text = changes_text or part != "unet"
        target = once if part != "unet" or _ONCE.search(layer_path) else each_step
        target.setdefault(layer, []).append(low)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return LoraWeights(digest, _joined(once), _joined(each_step), changes_text)


def fuse(lora: Lora, scale: float, pipe: Any, pipeline: Any) -> None:
    """Add a LoRA to the weights of a pipeline as it was loaded. Raises as `load`."""
    path, name = _file(lora)
    for part, layer_path, read in _read(path, name, pipe, pipeline):
        layer, low = _placed(getattr(pipe, part), layer_path, read, name, part)
        with torch.no_grad():
            change = low.up.flatten(1).float() @ low.down.flatten(1).float()
            layer.weight += (scale * change.view_as(layer.weight)).to(layer.weight.dtype)


def _file(lora: Lora) -> tuple[Path, str]:
    subfolder = lora.subfolder or ""
    name = hub.name_of(lora, subfolder, lora.weight_name)
    hub.check_safetensors(lora.weight_name, f"LoRA file {name}")
    return hub.find(lora, subfolder, lora.weight_name), name


def _read(path: Path, name: str, pipe: Any, pipeline: Any) -> Iterator[tuple[str, str, LowRank]]:
    """Part of the pipeline, path of the layer in it, and update, for each layer of a file."""
    tensors, alphas, metadata = hub.reading(
        f"LoRA file {name}",
        pipeline.lora_state_dict,
        str(path.parent),
        weight_name=path.name,
        unet_config=pipe.unet.config,
        use_safetensors=True,
        local_files_only=True,
        return_lora_metadata=True,
    )
    hub.check_files([path], f"LoRA file {name}", _ALPHA)
    pairs: dict[tuple[str, str], _Pair] = {}
    for key, tensor in tensors.items():
        found = _DOWN_OR_UP.search(key)
        if key.endswith(".alpha"):
            pairs.setdefault(_split(key.removesuffix(".alpha"), name), _Pair()).alpha = float(
                tensor
            )
        elif found is None:
            raise ConfigurationError(f"LoRA file {name} has a tensor {key}, which is not served")
        else:
            pair = pairs.setdefault(_split(key[: found.start()], name), _Pair())
            pair.names.append(key)
            if found[1] == "down" or found[2] == "A":
                pair.down = tensor
            else:
                pair.up = tensor
    for key, alpha in (alphas or {}).items():
        stem = key.removesuffix(".alpha")
        found = _DOWN_OR_UP.search(stem)
        pairs[_split(stem if found is None else stem[: found.start()], name)].alpha = float(alpha)
    if not pairs:
        raise ConfigurationError(f"LoRA file {name} has no low-rank tensors")
    for (part, layer_path), pair in pairs.items():
        if pair.down is None or pair.up is None:
            raise ConfigurationError(f"LoRA file {name} lacks one matrix of {part}.{layer_path}")
        alpha = pair.alpha if pair.alpha is not None else (metadata or {}).get(f"{part}.lora_alpha")
        rank = len(pair.down)
        scale = 1.0 if alpha is None else float(alpha) / rank
        yield part, layer_path, LowRank(pair.down, pair.up * scale)


def _split(path: str, name: str) -> tuple[str, str]:
    """Part of the pipeline and the path of a layer in it, from the start of a tensor's name."""
    part, _, rest = path.partition(".")
    if part not in PARTS:
        raise ConfigurationError(f"LoRA file {name} has a tensor {path}, which is not served")
    rest = rest.replace(".processor.", ".").removesuffix("_lora")
    last = rest.rpartition(".")[2]
    if part == "unet" and last == "to_out":
        rest += ".0"
    elif part != "unet" and last in _TEXT_NAMES:
        rest = rest.removesuffix(last) + _TEXT_NAMES[last]
    return part, rest


def _placed(
    network: nn.Module, path: str, low: LowRank, name: str, part: str
) -> tuple[Any, LowRank]:
    """The layer that computes what the layer at `path` did when it was loaded, and its update."""
    if part != "unet" and not hasattr(network, "text_model"):
        path = path.removeprefix("text_model.")  # as transformers 5 has CLIP's text encoder
    parent_path, _, last = path.rpartition(".")
    try:
        parent = network.get_submodule(parent_path)
    except AttributeError:
        parent = None
    rows: tuple[int, int] | None = None
    layer = getattr(parent, last, None)
    if isinstance(parent, SelfAttention):
        number = ("to_q", "to_k", "to_v").index(last) if last in ("to_q", "to_k", "to_v") else None
        if number is not None:
            layer, rows = parent.to_qkv, (number, 3)
    elif last == "0" and parent_path.endswith(".to_out") and layer is None:
        layer = network.get_submodule(parent_path)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise _misfit(name, f"{part}.{path}", "no such layer", network, part)
    out = layer.weight.shape[0] // (rows[1] if rows else 1)
    expected = (len(low.down), *layer.weight.shape[1:]), (out, len(low.down))
    shapes = tuple(low.down.shape), tuple(low.up.shape[:2])
    if shapes != expected:
        raise _misfit(
            name, f"{part}.{path}", f"a layer of another shape: {expected}", network, part
        )
    up = low.up
    if rows is not None:
        up = up.new_zeros(rows[1] * out, up.shape[1])
        up[rows[0] * out : (rows[0] + 1) * out] = low.up
    like = layer.weight
    return layer, LowRank(low.down.to(like), up.to(like))


def _misfit(name: str, tensor: str, what: str, network: nn.Module, part: str) -> ConfigurationError:
    place = checks.unet_name(network) if part == "unet" else part
    return ConfigurationError(
        f"LoRA file {name} changes {tensor}, but {place} has {what}: it belongs to another base "
        "model"
    )


def _joined(collected: Mapping[nn.Module, Sequence[LowRank]]) -> Updates:
    return {
        layer: LowRank(
            torch.cat([low.down for low in parts]), torch.cat([low.up for low in parts], dim=1)
        )
        for layer, parts in collected.items()
    }
