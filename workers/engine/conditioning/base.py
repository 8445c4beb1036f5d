"""What every way to steer a row has in common.

A way is a subclass of `Conditioning` in a file of its own and a line in `conditioning/__init__.py`.
Its hooks run in this order: `check` and `gather` on an input thread, `prepare` once a job on the
engine's thread, `join` when the membership of a batch changes, `act` at each step.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from service.core.job import JobWarning
from service.core.params import GenerateRequest
from workers.engine.api import EngineJob
from workers.engine.attention import Context
from workers.engine.cache import Embedding, EmbeddingCache
from workers.engine.compile import Networks
from workers.engine.models.base import Model
from workers.engine.models.lora import Updates

T = TypeVar("T")

UNCONDITIONAL, CONDITIONAL = 0, 1
"""The two branches of a guided row. Without guidance only the second exists."""
KEPT: Final = 4
"""Memberships of a batch whose joined tensors are remembered for a model."""

Gathered = Mapping[str, Any]
"""What `gather` returned, by the name of the way."""


@dataclass(slots=True)
class Preparation:
    """A job while its conditions are computed, with what earlier ways leave for later ones.

    `timesteps` are the sampler's, `(steps,)`, on the device.
    """

    request: GenerateRequest
    model: Model
    timesteps: Tensor
    updates: Updates = field(default_factory=dict)
    """Updates of layers that run once a job."""
    text: Embedding = field(default_factory=dict)
    """Encoded text, `(branches, ...)` each."""
    warnings: list[JobWarning] = field(default_factory=list)
    fresh: list[tuple[EmbeddingCache, str, Embedding]] = field(default_factory=list)
    """Embeddings that were computed for this job, for the shared store."""

    def warn(self, code: str, message: str) -> None:
        """Tell the client that something was done otherwise than it may have expected."""
        self.warnings.append(JobWarning(code=code, message=message))

    @property
    def steps(self) -> int:
        """Forward passes that each row takes."""
        return len(self.timesteps)

    def window(self, start: float, end: float, field_name: str) -> tuple[bool, ...]:
        """For each step, whether all of it lies in this part of the denoising (0 to 1).

        As in diffusers' ControlNet pipelines. `field_name` is that of its start, for the warning
        where no step does.
        """
        steps = self.steps
        active = tuple(step / steps >= start and (step + 1) / steps <= end for step in range(steps))
        if not any(active):
            self.warn_of_window(start, end, field_name)
        return active

    def warn_of_window(self, start: float, end: float, field_name: str) -> None:
        """Tell the client that a window, whose start is the field of that name, has no step."""
        self.warn(
            "window-without-step",
            f"No step lies between `{field_name}` {start:g} and its end {end:g}: use more steps "
            "or a wider window",
        )

    @property
    def guided(self) -> tuple[bool, ...]:
        """For each step, whether the unconditional branch runs."""
        request, steps = self.request, self.steps
        return tuple(
            request.guided and request.guidance_start <= step / steps < request.guidance_end
            for step in range(steps)
        )

    @property
    def branches(self) -> int:
        """2 with guidance, else 1."""
        return 2 if self.request.guided else 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.request.height, self.request.width


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """All that steers the rows of one job, which share it.

    `states` holds what each way's `prepare` returned, by its name; `guided` tells for each step
    whether the unconditional branch runs. No two conditions have the same `number`.
    """

    number: int
    states: Mapping[str, Any]
    branches: int
    guided: tuple[bool, ...]
    guidance_scale: float


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """One branch of one row at its next step."""

    conditions: Conditions
    branch: int
    step: int

    @property
    def index(self) -> int:
        """Index of its branch in tensors whose first dimension is `branches`."""
        return self.branch if self.conditions.branches > 1 else 0

    @property
    def key(self) -> tuple[int, int]:
        """Equal for entries of one job and branch."""
        return self.conditions.number, self.branch


class Joined:
    """What was joined for one membership of a batch: of each kind, what was joined last."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Hashable, Any]] = {}

    def get(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept as `kind` if it was joined for `key`, else what `make` returns."""
        if kind not in self._kept or self._kept[kind][0] != key:
            self._kept[kind] = (key, make())
        value: T = self._kept[kind][1]
        return value


class JoinMemo:
    """Remembers what was joined for the last few memberships, so that a step joins nothing."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Joined] = OrderedDict()

    def of(self, entries: Sequence[BatchEntry]) -> Joined:
        """What was joined for these jobs and branches in this order."""
        membership = tuple(entry.key for entry in entries)
        joined = self._kept.setdefault(membership, Joined())
        self._kept.move_to_end(membership)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return joined

    def clear(self) -> None:
        """Forget everything, to free its memory."""
        self._kept.clear()


@dataclass(slots=True)
class Forward:
    """One forward pass while it is put together.

    `entries` are those of the batch, the last one repeated up to a batch size that the networks
    are compiled for; only the first `count` matter. `sample` is `(entries, channels, h, w)`.
    """

    networks: Networks
    joined: Joined
    entries: Sequence[BatchEntry]
    count: int
    sample: Tensor
    context: Context
    emb: Tensor = field(default_factory=lambda: torch.empty(0))
    residuals: list[Tensor] | None = None
    features: list[Tensor] | None = None
    around: list[AbstractContextManager[None]] = field(default_factory=list)
    """Entered while the networks run. Such a batch runs uncompiled."""


class SteeredRow(Protocol):
    """What a way may read and change of a row (`rows.Row`)."""

    conditions: Conditions
    scheduler: Any
    generator: torch.Generator
    latents: Tensor
    extra_channels: Tensor | None
    kept: dict[str, Any]
    """By the name of a way, what it keeps for this row alone."""

    @property
    def done(self) -> bool:
        """Whether every step was taken."""

    def add_noise(self, latents: Tensor, noise: Tensor) -> Tensor:
        """`latents` as noisy as the row's own are before its next step."""


class Conditioning:
    """One way to steer a row. Each hook's default does nothing; a way overrides what it needs."""

    name: ClassVar[str]
    """Its key in `Gathered` and `Conditions.states`."""

    def check(self, request: GenerateRequest, model: Model) -> None:
        """Raise `UnservableRequest` where `model` cannot do what is asked."""

    def gather(self, job: EngineJob, model: Model) -> Any:
        """Look up and read what the job needs; runs no network. Raises what `job.read` raises."""

    def prepare(self, job: Preparation, gathered: Any) -> Any:
        """Compute what does not depend on the step: the way's part of `Conditions.states`."""

    def key(self, entry: BatchEntry) -> Hashable:
        """What else, beside job and branch, the result of `join` depends on at this step."""

    def join(self, entries: Sequence[BatchEntry], context: Context) -> Context:  # noqa: ARG002 (a hook)
        """Add what the entries attend to to `context`; remembered while all keys stay the same."""
        return context

    def act(self, forward: Forward) -> None:
        """Change the forward pass of this step."""

    def start(self, row: SteeredRow) -> None:
        """Change a new row; one that has no latents after all ways gets noise."""

    def after_step(self, row: SteeredRow) -> None:
        """Change a row after it took a step."""

    def finish(self, conditions: Conditions, picture: Image) -> Image:  # noqa: ARG002 (a hook)
        """Change a finished picture; not on the engine's thread."""
        return picture


def state(entry: BatchEntry, way: type[Conditioning]) -> Any:
    """What `way` prepared for an entry's job; None where it has no part in it."""
    return entry.conditions.states.get(way.name)
