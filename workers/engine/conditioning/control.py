"""Control maps: ControlNets and T2I-Adapters, several in a job, each in a part of the denoising."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from service.core.errors import UnservableRequest
from service.core.param_types import Control
from service.core.params import GenerateRequest
from workers.engine.api import EngineJob
from workers.engine.attention import Context, stack_texts
from workers.engine.conditioning.base import (
    BatchEntry,
    Conditioning,
    Forward,
    Gathered,
    Preparation,
    state,
)
from workers.engine.conditioning.preprocess import preprocessors
from workers.engine.device import to_device
from workers.engine.models.base import ControlNet, Model, T2IAdapter


@dataclass(frozen=True, slots=True)
class ControlInput:
    """A map as its network takes it, and the picture of it where it was made here."""

    pixels: Tensor
    made: Image.Image | None


@dataclass(frozen=True, slots=True, eq=False)
class ControlNetMap:
    """One map of a job for the ControlNet `name`.

    `kv` and `emb` are its own text K/V `(branches, tokens, width)` and time embeddings
    `(branches, steps, width)`; `hint` is the embedded map. `active` tells for each step whether
    the map acts.
    """

    name: str
    kv: Tensor
    emb: Tensor
    hint: Tensor
    scale: float
    active: tuple[bool, ...]


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMap:
    """One map of a job after its T2I-Adapter: features `(1, channels, h, w)`, scaled."""

    features: Sequence[Tensor]
    active: tuple[bool, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ControlState:
    """All maps of a job."""

    maps: tuple[ControlNetMap, ...]
    features: tuple[FeatureMap, ...]


class ControlMaps(Conditioning):
    """The control maps of a job; what several of them give is added up."""

    name = "control_maps"

    def check(self, request: GenerateRequest, model: Model) -> None:
        """Networks and preprocessors must be there."""
        for control in request.controls:
            if control.type not in (*model.controlnets, *model.t2i_adapters):
                raise UnservableRequest(
                    f"`control_type` {control.type} is not served by this worker"
                )
            if control.preprocess not in (NO_PREPROCESSING, *preprocessors(model)):
                raise UnservableRequest(
                    f"`control_preprocess` {control.preprocess} is not served by this worker"
                )

    def gather(self, job: EngineJob, model: Model) -> tuple[ControlInput, ...]:
        """Read and preprocess the maps."""
        return tuple(_gather(job, control, model) for control in job.request.controls)

    def prepare(self, job: Preparation, gathered: tuple[ControlInput, ...]) -> ControlState | None:
        """Run T2I-Adapters, embed maps; K and V of the text and time embeddings of ControlNets."""
        if not gathered:
            return None
        maps, features = [], []
        for control, inputs in zip(job.request.controls, gathered, strict=True):
            pixels = to_device(inputs.pixels, job.model.device, job.model.dtype)
            if control.type in job.model.controlnets:
                maps.append(_map(job, control, pixels))
            else:
                features.append(_features(job, control, pixels))
        return ControlState(tuple(maps), tuple(features))

    def act(self, forward: Forward) -> None:
        """Residuals and features for the whole batch; zeros for entries on which no map acts."""
        maps: dict[str, list[_Use]] = {}
        features: dict[Hashable, tuple[int, FeatureMap]] = {}
        for position, entry in enumerate(forward.entries[: forward.count]):
            own: ControlState | None = state(entry, ControlMaps)
            if own is None:
                continue
            for number, each in enumerate(own.maps):
                if each.active[entry.step]:
                    maps.setdefault(each.name, []).append((position, number, entry, each))
            for number, added in enumerate(own.features):
                if added.active[entry.step]:
                    features[position, number] = position, added
        for name, uses in sorted(maps.items()):
            _add_residuals(forward, name, uses)
        if features:
            forward.features = forward.joined.get(
                "features", tuple(features), lambda: _sum(forward, list(features.values()))
            )


NO_PREPROCESSING = "none"
_Use = tuple[int, int, BatchEntry, ControlNetMap]
"""A map, with its number in its job, that acts on the batch entry at a position."""


@dataclass(frozen=True, slots=True, eq=False)
class _Uses:
    """What a ControlNet takes for all maps of a batch, but for what depends on the step."""

    positions: Tensor
    context: Context
    hint: Tensor
    scale: Tensor


def made_maps(gathered: Gathered) -> tuple[Image.Image, ...]:
    """The maps of a job that were made here of the pictures that were sent."""
    inputs: tuple[ControlInput, ...] = gathered[ControlMaps.name]
    return tuple(one.made for one in inputs if one.made is not None)


def _gather(job: EngineJob, control: Control, model: Model) -> ControlInput:
    request = job.request
    picture, made = job.read(control.key), None
    size = (request.width, request.height)
    if control.preprocess != NO_PREPROCESSING:
        resized = picture.resize(size, Image.Resampling.LANCZOS)
        picture = made = preprocessors(model)[control.preprocess](resized)
    if control.type in model.t2i_adapters:
        adapter: T2IAdapter = model.t2i_adapters[control.type]
        return ControlInput(adapter.preprocess(picture, request.height, request.width), made)
    # As in diffusers' ControlNet pipelines, whose processor would first copy the whole picture.
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    processor = VaeImageProcessor(
        vae_scale_factor=model.scale_factor, do_convert_rgb=True, do_normalize=False
    )
    pixels: Tensor = processor.preprocess(picture, height=request.height, width=request.width)
    return ControlInput(pixels.to(torch.float32), made)


def _map(job: Preparation, control: Control, pixels: Tensor) -> ControlNetMap:
    net: ControlNet = job.model.controlnets[control.type]
    return ControlNetMap(
        name=control.type,
        kv=net.text_kv(job.text),
        emb=net.time_embeddings(job.timesteps, job.text, job.size),
        hint=net.embed_map(pixels),
        scale=control.scale,
        active=job.window(control.start, control.end, "control_start"),
    )


def _features(job: Preparation, control: Control, pixels: Tensor) -> FeatureMap:
    adapter: T2IAdapter = job.model.t2i_adapters[control.type]
    scaled = [part * control.scale for part in adapter.features(pixels)]
    return FeatureMap(scaled, job.window(control.start, control.end, "control_start"))


def _sum(forward: Forward, features: Sequence[tuple[int, FeatureMap]]) -> list[Tensor]:
    """The features of the whole batch, from those of the entries at their positions."""
    count, (_, first) = len(forward.sample), features[0]
    total = [part.new_zeros(count, *part.shape[1:]) for part in first.features]
    for position, own in features:
        for whole, part in zip(total, own.features, strict=True):
            whole[position] += part[0]
    return total


def _add_residuals(forward: Forward, name: str, uses: Sequence[_Use]) -> None:
    sample = forward.sample
    count = forward.networks.padded(len(uses), *sample.shape[-2:])
    padded = [*uses, *[uses[-1]] * (count - len(uses))]
    key = tuple((position, number) for position, number, _, _ in padded)
    joined = forward.joined.get(f"ControlNet {name}", key, lambda: _join(padded, sample))
    # Maps of one ControlNet share its forward pass; the last of them may be padding.
    parts = forward.networks.control(
        name,
        sample.index_select(0, joined.positions),
        torch.stack([own.emb[entry.index, entry.step] for _, _, entry, own in padded]),
        joined.context,
        joined.hint,
        joined.scale,
    )
    if forward.residuals is None:
        if [position for position, _, _, _ in uses] == list(range(len(sample))):
            forward.residuals = parts
            return
        forward.residuals = [part.new_zeros(len(sample), *part.shape[1:]) for part in parts]
    positions = joined.positions[: len(uses)]
    for whole, part in zip(forward.residuals, parts, strict=True):
        whole.index_add_(0, positions, part[: len(uses)])


def _join(padded: Sequence[_Use], sample: Tensor) -> _Uses:
    positions = torch.tensor([position for position, _, _, _ in padded])
    scale = torch.tensor([own.scale for _, _, _, own in padded], dtype=sample.dtype)
    return _Uses(
        positions=to_device(positions, sample.device),
        context=stack_texts([own.kv[entry.index] for _, _, entry, own in padded]),
        hint=torch.cat([own.hint for _, _, _, own in padded]),
        scale=to_device(scale, sample.device),
    )
