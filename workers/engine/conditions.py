"""What steers a job's rows, computed once when the job is admitted and never at a step.

Keys and values of every layer for text and image, time embeddings of all steps, the ControlNet's
share. The rows of one job are steered alike and hold this together.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from service.core.params import GenerateRequest
from workers.engine.device import to_device
from workers.engine.encoding import Encoded
from workers.engine.forward import embed_map, time_embeddings
from workers.engine.inputs import Inputs
from workers.engine.layers import text_memory
from workers.engine.loading import LoadedAdapter, LoadedModel

NEGATIVE, POSITIVE = 0, 1
"""The two sides of a row. Without guidance only the second exists."""


@dataclass(frozen=True, slots=True, eq=False)
class ControlConditions:
    """A job's ControlNet: its name, its own text memory and time embeddings, the embedded map.

    `active` tells for each step whether the map acts.
    """

    name: str
    text: Tensor
    emb: Tensor
    hint: Tensor
    scale: float
    active: tuple[bool, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """All that steers a job's rows. First dimension of tensors: the sides that the job has.

    `text` `(sides, tokens, width)`, `emb` `(sides, steps, width)`, `image`
    `(sides, image tokens, width)` or None, `bias` `(image tokens,)` or None where all image
    prompts weigh the same, `scale` `(layers,)`: lambda. `guided` tells for each step whether the
    negative side runs.
    """

    number: int
    """No two conditions have the same."""
    text: Tensor
    emb: Tensor
    image: Tensor | None
    bias: Tensor | None
    scale: Tensor
    guided: tuple[bool, ...]
    guidance_scale: float
    control: ControlConditions | None

    def index(self, side: int) -> int:
        """Where a side stands in the first dimension."""
        return side if len(self.text) > 1 else 0


class Conditioner:
    """Makes `Conditions`; remembers each adapter's memory of no image."""

    def __init__(self) -> None:
        self._nothing: dict[LoadedAdapter, Tensor] = {}
        self._numbers = itertools.count()

    def make(
        self,
        request: GenerateRequest,
        model: LoadedModel,
        inputs: Inputs,
        encoded: Encoded,
        timesteps: Tensor,
    ) -> Conditions:
        """Conditions of a job whose sampler visits `timesteps`, `(steps,)`."""
        sides = [encoded.negative, encoded.positive] if request.guided else [encoded.positive]
        tokens = torch.cat([side.tokens for side in sides])
        pooled = torch.cat([side.pooled for side in sides])
        size = (request.height, request.width)
        sizes = torch.tensor([*size, 0, 0, *size], dtype=model.dtype)
        time_ids = to_device(sizes, model.device)
        times = to_device(timesteps, model.device)
        adapter = model.adapters[request.adapter]
        return Conditions(
            number=next(self._numbers),
            text=text_memory(model.layers, tokens),
            emb=time_embeddings(model.unet, times, pooled, time_ids),
            image=self._image(model, adapter, encoded.images, len(sides)),
            bias=_bias([image.weight for image in inputs.images], model, adapter),
            scale=request.ip_scale
            * to_device(torch.tensor(adapter.scales), model.device, model.dtype),
            guided=tuple(request.guided_at(step) for step in range(request.steps)),
            guidance_scale=request.guidance_scale,
            control=self._control(request, model, inputs, tokens, pooled, times, time_ids),
        )

    def _image(
        self, model: LoadedModel, adapter: LoadedAdapter, images: Tensor | None, sides: int
    ) -> Tensor | None:
        if images is None:
            return None
        memory = adapter.memory(images.to(model.dtype)).flatten(0, 1)[None]
        if sides == 1:
            return memory
        nothing = self._memory_of_nothing(model, adapter)
        return torch.cat([nothing.repeat(1, len(images), 1), memory])

    def _memory_of_nothing(self, model: LoadedModel, adapter: LoadedAdapter) -> Tensor:
        if adapter not in self._nothing:
            side = adapter.encoder.size
            pixels = torch.zeros(1, 3, side, side, dtype=model.dtype, device=model.device)
            self._nothing[adapter] = adapter.memory(adapter.nothing(pixels))
        return self._nothing[adapter]

    def _control(
        self,
        request: GenerateRequest,
        model: LoadedModel,
        inputs: Inputs,
        tokens: Tensor,
        pooled: Tensor,
        times: Tensor,
        time_ids: Tensor,
    ) -> ControlConditions | None:
        control = request.control
        if control is None or inputs.control is None:
            return None
        loaded = model.controlnets[control.type]
        steps = request.steps
        return ControlConditions(
            name=control.type,
            text=text_memory(loaded.layers, tokens),
            emb=time_embeddings(loaded.model, times, pooled, time_ids),
            hint=embed_map(loaded.model, to_device(inputs.control, model.device, model.dtype)),
            scale=control.scale,
            # As in diffusers' pipeline: a step acts where all of it lies in the window.
            active=tuple(
                step / steps >= control.start and (step + 1) / steps <= control.end
                for step in range(steps)
            ),
        )


def _bias(weights: list[float], model: LoadedModel, adapter: LoadedAdapter) -> Tensor | None:
    if len(set(weights)) <= 1:
        return None
    relative = torch.tensor(weights) / max(weights)
    tokens = adapter.tokens
    return to_device(relative.log().repeat_interleave(tokens), model.device, model.dtype)
