"""LoRAs of a request: low-rank updates of the networks for the rows that ask for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from service.core.errors import UnservableRequest
from service.core.params import GenerateRequest
from workers.engine.conditioning.base import Conditioning, Forward, Preparation, state
from workers.engine.models import lora
from workers.engine.models.base import Model
from workers.engine.models.lora import LowRank, RowUpdates, Updates


@dataclass(frozen=True, slots=True, eq=False)
class LoraState:
    """The updates of a job's LoRAs together, for layers that run at each step."""

    each_step: Updates


class Loras(Conditioning):
    """LoRAs by the names of models.yaml."""

    name = "loras"

    def check(self, request: GenerateRequest, model: Model) -> None:
        """They must be loaded."""
        for name in request.loras:
            if name not in model.loras:
                raise UnservableRequest(f"`lora` {name} is not served by this worker")

    def prepare(self, job: Preparation, gathered: None) -> LoraState | None:  # noqa: ARG002 (a hook)
        """Add up the updates; those of layers that run once a job are for other ways to use."""
        loras = job.model.loras
        chosen = [(loras[name], scale) for name, scale in job.request.loras.items() if scale]
        if not chosen:
            return None
        job.updates = lora.combine([(one.once, scale) for one, scale in chosen])
        return LoraState(lora.combine([(one.each_step, scale) for one, scale in chosen]))

    def act(self, forward: Forward) -> None:
        """Let the layers add the updates of this batch's rows."""
        updates = forward.joined.get(self.name, (), lambda: _row_updates(forward))
        if updates:
            forward.around.append(lora.updated(updates))


def _row_updates(forward: Forward) -> RowUpdates:
    """For each layer, the rows of the batch that it is updated for. Rows of a job are adjacent."""
    updates: dict[nn.Module, list[tuple[slice, LowRank]]] = {}
    entries = enumerate(forward.entries)
    for _, group in groupby(entries, lambda one: one[1].conditions.number):
        positions, members = zip(*group, strict=True)
        own: LoraState | None = state(members[0], Loras)
        if own is None:
            continue
        rows = slice(positions[0], positions[-1] + 1)
        for layer, low in own.each_step.items():
            updates.setdefault(layer, []).append((rows, low))
    return updates


def text_variant(request: GenerateRequest, model: Model) -> Sequence[str]:
    """What distinguishes embeddings of texts that are encoded with a request's LoRAs."""
    return [
        f"{model.loras[name].fingerprint}:{scale}"
        for name, scale in request.loras.items()
        if scale and model.loras[name].changes_text
    ]
