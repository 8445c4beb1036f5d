"""Control maps: ControlNets that act in a part of the denoising."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from service.core.errors import UnservableRequest
from service.core.params import GenerateRequest
from workers.engine.api import EngineJob
from workers.engine.attention import Context
from workers.engine.conditioning.base import (
    Conditioning,
    Forward,
    Preparation,
    state,
)
from workers.engine.device import to_device
from workers.engine.models.base import ControlNet, Model


@dataclass(frozen=True, slots=True, eq=False)
class ControlState:
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


class ControlMaps(Conditioning):
    """The control map of a job."""

    name = "control_maps"

    def check(self, request: GenerateRequest, model: Model) -> None:
        """The ControlNet must be loaded."""
        control = request.control
        if control is not None and control.type not in model.controlnets:
            raise UnservableRequest(f"`control_type` {control.type} is not served by this worker")

    def gather(self, job: EngineJob, model: Model) -> Tensor | None:
        """Read the map, `(1, 3, height, width)` in 0 to 1."""
        request = job.request
        if request.control is None:
            return None
        # As in diffusers' ControlNet pipelines.
        processor = VaeImageProcessor(
            vae_scale_factor=model.scale_factor, do_convert_rgb=True, do_normalize=False
        )
        picture: Tensor = processor.preprocess(
            job.read(request.control.key), height=request.height, width=request.width
        )
        return picture.to(torch.float32)

    def prepare(self, job: Preparation, gathered: Tensor | None) -> ControlState | None:
        """Embed the map; K and V of the text and time embeddings for the ControlNet."""
        control, model = job.request.control, job.model
        if control is None or gathered is None:
            return None
        net: ControlNet = model.controlnets[control.type]
        steps = job.request.steps
        return ControlState(
            name=control.type,
            kv=net.text_kv(job.text),
            emb=net.time_embeddings(job.timesteps, job.text, job.size),
            hint=net.embed_map(to_device(gathered, model.device, model.dtype)),
            scale=control.scale,
            # As in diffusers' pipeline: a step is active where all of it lies in the window.
            active=tuple(
                step / steps >= control.start and (step + 1) / steps <= control.end
                for step in range(steps)
            ),
        )

    def act(self, forward: Forward) -> None:
        """Residuals for the whole batch; zeros for entries on which no map acts."""
        active: dict[str, list[int]] = {}
        for position, entry in enumerate(forward.entries[: forward.count]):
            own: ControlState | None = state(entry, ControlMaps)
            if own is not None and own.active[entry.step]:
                active.setdefault(own.name, []).append(position)
        for name, positions in sorted(active.items()):
            self._add(forward, name, positions)

    def _add(self, forward: Forward, name: str, positions: list[int]) -> None:
        parts = _residuals(forward, name, positions)
        sample = forward.sample
        if len(positions) == len(sample):
            forward.residuals = parts
            return
        if forward.residuals is None:
            forward.residuals = [part.new_zeros(len(sample), *part.shape[1:]) for part in parts]
        index = to_device(torch.tensor(positions), sample.device)
        for whole, part in zip(forward.residuals, parts, strict=True):
            whole.index_copy_(0, index, part[: len(positions)])


def _residuals(forward: Forward, name: str, positions: Sequence[int]) -> list[Tensor]:
    """The residuals of one ControlNet for the entries at `positions`, perhaps padded."""
    sample = forward.sample
    count = forward.networks.padded(len(positions), *sample.shape[-2:])
    padded = [*positions, *[positions[-1]] * (count - len(positions))]
    entries = [forward.entries[position] for position in padded]
    states: list[ControlState] = [state(entry, ControlMaps) for entry in entries]
    pairs = list(zip(entries, states, strict=True))
    context = forward.memo.get(
        (name, *(entry.key for entry in entries)),
        lambda: Context(torch.stack([own.kv[entry.index] for entry, own in pairs])),
    )
    scale = torch.tensor([own.scale for own in states], dtype=sample.dtype)
    return forward.networks.control(
        name,
        sample.index_select(0, to_device(torch.tensor(padded), sample.device)),
        torch.stack([own.emb[entry.index, entry.step] for entry, own in pairs]),
        context,
        torch.cat([own.hint for own in states]),
        to_device(scale, sample.device),
    )
