"""One forward pass over rows of different jobs: put together, run, taken apart.

What the rows attend to is joined only when the membership of the batch changes. A batch that
does not fit into memory is split; a job whose rows fail even alone is named. It knows nothing of
who is served when.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from service.core.errors import EngineFault, JobFailed, OutOfMemory
from workers.engine.attention import Context
from workers.engine.conditions import Conditions
from workers.engine.networks import Networks
from workers.engine.rows import Row

log = logging.getLogger(__name__)

CONTEXTS_KEPT: Final = 2
"""Joined contexts remembered for each model: the one of the long rows and one of short ones."""


@dataclass(frozen=True, slots=True)
class Place:
    """One side of one row in a batch."""

    row: Row
    side: int

    @property
    def conditions(self) -> Conditions:
        """What steers it."""
        return self.row.conditions

    @property
    def index(self) -> int:
        """Where its side stands in tensors with the job's sides first."""
        return self.row.conditions.index(self.side)

    @property
    def key(self) -> tuple[int, int]:
        """Places with one key attend to the same."""
        return (id(self.row.conditions), self.side)


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a turn gave: a prediction for each row that is well, and why others are not.

    `values` is `(rows, channels, h, w)` for `rows`, guidance applied; `inputs` is the same shape,
    what the UNet was given; `finite` `(rows,)`.
    """

    rows: tuple[Row, ...]
    values: Tensor
    inputs: Tensor
    finite: Tensor
    failed: tuple[tuple[Row, JobFailed], ...]
    out_of_memory: bool
    """Whether the batch did not fit into memory at first."""


class Batcher:
    """Runs batches of one model's rows through its networks."""

    def __init__(self, networks: Networks, on_out_of_memory: Callable[[], None]) -> None:
        self._networks = networks
        self._on_out_of_memory = on_out_of_memory
        self._contexts: OrderedDict[object, tuple[tuple[Place, ...], Context]] = OrderedDict()
        self._ran_out = False

    def predict(self, rows: Sequence[Row]) -> Predictions:
        """One forward over all `rows` at their own steps, then guidance."""
        self._ran_out = False
        inputs = {row: row.model_input().to(self._networks.dtype) for row in rows}
        places = [Place(row, side) for row in rows for side in row.sides]
        outputs, errors = self._run(places, inputs)
        well = tuple(row for row in rows if row not in errors)
        failed = tuple(errors.items())
        if not well:
            empty = torch.empty(0)
            return Predictions((), empty, empty, empty, failed, self._ran_out)
        first = torch.stack([outputs[row, row.sides[0]] for row in well]).float()
        last = torch.stack([outputs[row, row.sides[-1]] for row in well]).float()
        scale = torch.tensor([row.conditions.guidance_scale for row in well], device=first.device)
        # Unguided rows have one side: first and last are the same, and the scale has no effect.
        values = torch.addcmul(first, last - first, scale[:, None, None, None])
        finite = torch.isfinite(values).flatten(1).all(1)
        joined = torch.cat([inputs[row] for row in well])
        return Predictions(well, values, joined, finite, failed, self._ran_out)

    def _run(
        self, places: Sequence[Place], inputs: dict[Row, Tensor]
    ) -> tuple[dict[tuple[Row, int], Tensor], dict[Row, JobFailed]]:
        try:
            outputs = self._forward(places, inputs)
        except torch.AcceleratorError:
            raise  # the device is lost, and with it every row
        except Exception as error:
            memory = isinstance(error, torch.OutOfMemoryError)
            if memory:
                self._ran_out = True
                self._on_out_of_memory()
                self._contexts.clear()
                self._networks.free_memory()
            if len(places) > 1:
                log.warning("a batch of %d places failed and is split: %s", len(places), error)
                half = len(places) // 2
                outputs_a, errors_a = self._run(places[:half], inputs)
                outputs_b, errors_b = self._run(places[half:], inputs)
                return outputs_a | outputs_b, errors_a | errors_b
            log.exception("a row failed alone")
            return {}, {places[0].row: _failure(memory=memory)}
        return {
            (place.row, place.side): output for place, output in zip(places, outputs, strict=False)
        }, {}

    def _forward(self, places: Sequence[Place], inputs: dict[Row, Tensor]) -> Tensor:
        count = self._networks.padded(len(places))
        padded = [*places, *[places[-1]] * (count - len(places))]
        sample = torch.cat([inputs[place.row] for place in padded])
        emb = torch.stack([place.conditions.emb[place.index, place.row.step] for place in padded])
        context = self._context(padded)
        residuals = self._residuals(places, sample, count)
        return self._networks.denoise(sample, emb, context, residuals, len(places))

    def _context(self, places: Sequence[Place]) -> Context:
        key = tuple(place.key for place in places)
        if key in self._contexts:
            self._contexts.move_to_end(key)
            return self._contexts[key][1]
        context = join(places)
        # The places are kept with it, so that no other conditions can come to have their ids.
        self._contexts[key] = (tuple(places), context)
        while len(self._contexts) > CONTEXTS_KEPT:
            self._contexts.popitem(last=False)
        return context

    def _residuals(
        self, places: Sequence[Place], sample: Tensor, count: int
    ) -> list[Tensor] | None:
        """Residuals for the whole batch; zeros for places that no map acts on."""
        acting: dict[str, list[int]] = {}
        for position, place in enumerate(places):
            control = place.conditions.control
            if control is not None and control.active[place.row.step]:
                acting.setdefault(control.name, []).append(position)
        total: list[Tensor] | None = None
        for name, positions in acting.items():
            parts = self._control(
                name, [places[position] for position in positions], sample, positions
            )
            if len(positions) == count:
                return parts
            if total is None:
                total = [part.new_zeros(count, *part.shape[1:]) for part in parts]
            index = torch.tensor(positions, device=sample.device)
            for whole, part in zip(total, parts, strict=True):
                whole.index_copy_(0, index, part[: len(positions)])
        return total

    def _control(
        self, name: str, places: Sequence[Place], sample: Tensor, positions: Sequence[int]
    ) -> list[Tensor]:
        count = self._networks.padded(len(places))
        spare = count - len(places)
        padded = [*places, *[places[-1]] * spare]
        controls = [place.conditions.control for place in padded]
        present = [control for control in controls if control is not None]
        return self._networks.control(
            name,
            sample[[*positions, *[positions[-1]] * spare]],
            torch.stack([c.emb[p.index, p.row.step] for c, p in zip(present, padded, strict=True)]),
            Context(torch.stack([c.text[p.index] for c, p in zip(present, padded, strict=True)])),
            torch.cat([control.hint for control in present]),
            torch.tensor([c.scale for c in present], device=sample.device, dtype=sample.dtype),
        )


def join(places: Sequence[Place]) -> Context:
    """Join what places of different jobs attend to into one context.

    Rows with fewer image tokens than others are padded behind a bias of minus infinity; rows
    without an image prompt see one token of zeros and have lambda 0.
    """
    text = torch.stack([place.conditions.text[place.index] for place in places])
    counts = [_tokens(place.conditions) for place in places]
    longest = max(counts)
    if longest == 0:
        return Context(text)
    width = next(c.image.shape[2] for c in (p.conditions for p in places) if c.image is not None)
    image = text.new_zeros(len(places), longest, width)
    scale = text.new_zeros(len(places), len(places[0].conditions.scale))
    bias = text.new_full((len(places), longest), -torch.inf)
    for position, (place, count) in enumerate(zip(places, counts, strict=True)):
        conditions = place.conditions
        bias[position, : max(count, 1)] = 0
        if conditions.image is None:
            continue
        image[position, :count] = conditions.image[place.index]
        scale[position] = conditions.scale
        if conditions.bias is not None:
            bias[position, :count] = conditions.bias
    weighted = any(place.conditions.bias is not None for place in places)
    plain = not weighted and all(count in (0, longest) for count in counts)
    return Context(text, image, scale, None if plain else bias)


def _tokens(conditions: Conditions) -> int:
    return 0 if conditions.image is None else conditions.image.shape[1]


def _failure(*, memory: bool) -> JobFailed:
    if memory:
        return OutOfMemory("The picture does not fit into the GPU's memory even alone.")
    return EngineFault("The engine failed at this job; its log has the cause.")
