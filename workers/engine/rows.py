"""Jobs and rows inside the engine. A row is the latents of one picture while it is denoised.

A row takes one entry of a batch, or two while it is guided: the unconditional and the conditional
branch.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL.Image import Image
from torch import Tensor

from service.core.job import JobWarning
from workers.engine import schedulers
from workers.engine.api import EngineJob, EngineTicket, Listener
from workers.engine.conditioning.base import (
    CONDITIONAL,
    UNCONDITIONAL,
    BatchEntry,
    Conditions,
    Gathered,
)
from workers.engine.models.base import Model

Group = tuple[str, int, int, str]
"""What rows must share to run in one forward: model, height, width, and for a deterministic job
its id (else "")."""


@dataclass(slots=True, eq=False)
class Work:
    """A job in the engine. Only the engine's thread changes it after it was submitted.

    It holds no reference to its rows, which refer to it: an ended job's tensors and pictures are
    freed at once instead of waiting for the garbage collector.
    """

    job: EngineJob
    model: Model
    ticket: EngineTicket
    listener: Listener
    arrival: int
    """Jobs are numbered in the order they came."""
    submitted_at: float
    gathered: Gathered | None = None
    warnings: tuple[JobWarning, ...] = ()
    steps: list[int] = field(default_factory=list)
    """Forward passes that each of its rows has taken."""
    passes: int = 1
    """Forward passes that each row takes in all."""
    pictures: dict[int, Image] = field(default_factory=dict)
    """Finished ones by their number; only the threads that finish pictures write here."""
    ready_at: float = 0.0
    """When its rows could first run; what came before is the encode time."""
    denoised_at: float = 0.0
    max_batch: int = 0
    reported: int = 0
    """Steps that the listener was told of."""
    preview: tuple[int, Image] | None = None
    """Drawn at that step and not yet sent."""

    @property
    def step(self) -> int:
        """Forward passes that every row has taken."""
        return min(self.steps)

    @property
    def reached(self) -> int:
        """Steps that are done, of as many as were asked for.

        A row takes fewer forward passes where it starts from a picture, and more with samplers of
        second order.
        """
        return self.step * self.job.request.steps // self.passes

    @property
    def group(self) -> Group:
        """What its rows must share with those of other jobs to run with them."""
        request = self.job.request
        alone = self.job.id if request.deterministic else ""
        return (self.model.name, request.height, request.width, alone)

    @property
    def cost(self) -> int:
        """Rows times steps times pixels, for comparing jobs."""
        request = self.job.request
        return request.row_steps * request.width * request.height


@dataclass(slots=True, eq=False)
class Row:
    """One picture of a job: its latents `(1, channels, h, w)`, sampler state and noise source."""

    work: Work
    index: int
    conditions: Conditions
    scheduler: Any
    generator: torch.Generator
    timesteps: Tensor
    """Those that it visits, on the CPU."""
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    step: int = 0
    extra_channels: Tensor | None = None
    """`(1, channels, h, w)` that the network takes beside the latents."""
    kept: dict[str, Any] = field(default_factory=dict)
    """By the name of a way to steer, what it keeps for this row alone."""

    @property
    def group(self) -> Group:
        """See `Work.group`."""
        return self.work.group

    @property
    def arrival(self) -> int:
        """See `Work.arrival`."""
        return self.work.arrival

    @property
    def cost(self) -> int:
        """See `Work.cost`."""
        return self.work.cost

    @property
    def entries(self) -> int:
        """Batch entries it takes at its next step."""
        return len(self.branches)

    @property
    def branches(self) -> tuple[int, ...]:
        """The branches that run at the next step."""
        guided = self.conditions.guided[self.step]
        return (UNCONDITIONAL, CONDITIONAL) if guided else (CONDITIONAL,)

    def entry(self, branch: int) -> BatchEntry:
        """One of its branches at the next step."""
        return BatchEntry(self.conditions, branch, self.step)

    @property
    def timestep(self) -> Tensor:
        """The sampler's time of the next step, on the CPU."""
        return self.timesteps[self.step]

    @property
    def done(self) -> bool:
        """Whether every step has been taken."""
        return self.step >= len(self.timesteps)

    def model_input(self) -> Tensor:
        """The latents scaled as the network takes them, with its further channels."""
        scaled: Tensor = self.scheduler.scale_model_input(self.latents, self.timestep)
        if self.extra_channels is None:
            return scaled
        return torch.cat([scaled, self.extra_channels.to(scaled.dtype)], dim=1)

    def add_noise(self, latents: Tensor, noise: Tensor) -> Tensor:
        """`latents` as noisy as the row's own are before its next step."""
        noisy: Tensor = self.scheduler.add_noise(latents, noise, self.timestep[None])
        return noisy

    def advance(self, prediction: Tensor) -> None:
        """Take one step along `prediction`, `(1, channels, h, w)`."""
        self.latents = schedulers.step(
            self.scheduler, prediction, self.timestep, self.latents, self.generator
        )
        self.step += 1
        self.work.steps[self.index] = self.step


def draw_noise(row: Row) -> None:
    """Draw the first noise of a row as the plain pipeline does."""
    request, model = row.work.job.request, row.work.model
    factor = model.scale_factor
    shape = (1, model.latent_channels, request.height // factor, request.width // factor)
    noise = randn_tensor(shape, generator=row.generator, device=model.device, dtype=model.dtype)
    row.latents = noise.float() * row.scheduler.init_noise_sigma


def now() -> float:
    """Seconds of a monotonic clock."""
    return time.monotonic()
