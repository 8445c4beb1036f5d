"""One forward pass over rows of different jobs: put together, run, taken apart.

A batch that does not fit into memory is split; a job whose rows fail even alone is named. It
knows nothing of who is served when.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from service.core.errors import EngineFault, JobFailed, OutOfMemory
from workers.engine.contexts import Contexts, Place
from workers.engine.device import to_device
from workers.engine.networks import Networks
from workers.engine.rows import Row

log = logging.getLogger(__name__)

Outputs = dict[tuple[Row, int], Tensor]
"""The UNet's output `(channels, h, w)` by row and side."""


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
        self._contexts = Contexts()
        self._ran_out = False

    def predict(self, rows: Sequence[Row]) -> Predictions:
        """One forward over all `rows` at their own steps, then guidance.

        Raises `torch.AcceleratorError` where the device is lost.
        """
        steady = rows[0].work.job.request.deterministic
        with self._networks.repeatable() if steady else nullcontext():
            return self._predict(rows)

    def _predict(self, rows: Sequence[Row]) -> Predictions:
        self._ran_out = False
        inputs, errors = self._inputs(rows)
        places = [Place(row, side) for row in rows if row in inputs for side in row.sides]
        outputs, more_errors = self._run(places, inputs) if places else ({}, {})
        errors |= more_errors
        well = tuple(row for row in rows if row not in errors)
        failed = tuple(errors.items())
        if not well:
            empty = torch.empty(0)
            return Predictions((), empty, empty, empty, failed, self._ran_out)
        first = torch.stack([outputs[row, row.sides[0]] for row in well]).float()
        last = torch.stack([outputs[row, row.sides[-1]] for row in well]).float()
        scales = torch.tensor([row.conditions.guidance_scale for row in well])
        # Unguided rows have one side: first and last are the same, and the scale has no effect.
        scale = to_device(scales, first.device)[:, None, None, None]
        values = torch.addcmul(first, last - first, scale)
        finite = torch.isfinite(values).flatten(1).all(1)
        joined = torch.cat([inputs[row] for row in well])
        return Predictions(well, values, joined, finite, failed, self._ran_out)

    def _inputs(self, rows: Sequence[Row]) -> tuple[dict[Row, Tensor], dict[Row, JobFailed]]:
        """What the UNet is given for each row, and the rows whose sampler does not give it."""
        inputs: dict[Row, Tensor] = {}
        errors: dict[Row, JobFailed] = {}
        for row in rows:
            try:
                inputs[row] = row.model_input().to(self._networks.dtype)
            except torch.AcceleratorError:
                raise  # the device is lost, and with it every row
            except Exception as error:
                log.exception("a row's sampler failed")
                errors[row] = _failure(memory=isinstance(error, torch.OutOfMemoryError))
        return inputs, errors

    def _run(
        self, places: Sequence[Place], inputs: dict[Row, Tensor]
    ) -> tuple[Outputs, dict[Row, JobFailed]]:
        try:
            output = self._forward(places, inputs)
        except torch.AcceleratorError:
            raise  # the device is lost, and with it every row
        except Exception as error:
            memory = isinstance(error, torch.OutOfMemoryError)
            if len(places) == 1:
                log.exception("a row failed alone")
            else:
                log.warning("a batch of %d places failed and is split: %s", len(places), error)
        else:
            return {
                (place.row, place.side): part
                for place, part in zip(places, output.unbind(), strict=True)
            }, {}
        # Only here are the frames gone that held the failed forward's memory.
        if memory:
            self._free_memory()
        if len(places) == 1:
            return {}, {places[0].row: _failure(memory=memory)}
        half = len(places) // 2
        outputs, errors = self._run(places[:half], inputs)
        more_outputs, more_errors = self._run(places[half:], inputs)
        return outputs | more_outputs, errors | more_errors

    def _free_memory(self) -> None:
        self._ran_out = True
        self._contexts.clear()
        self._networks.free_memory()
        self._on_out_of_memory()

    def _forward(self, places: Sequence[Place], inputs: dict[Row, Tensor]) -> Tensor:
        padded = self._padded(places)
        sample = torch.cat([inputs[place.row] for place in padded])
        emb = torch.stack([place.conditions.emb[place.index, place.row.step] for place in padded])
        context = self._contexts.unet(padded)
        residuals = self._residuals(places, sample)
        return self._networks.denoise(sample, emb, context, residuals)[: len(places)]

    def _padded(self, places: Sequence[Place]) -> list[Place]:
        """The places, the last one repeated up to a batch size that the networks are made for."""
        count = self._networks.padded(len(places), *places[0].row.latents.shape[-2:])
        return [*places, *[places[-1]] * (count - len(places))]

    def _residuals(self, places: Sequence[Place], sample: Tensor) -> list[Tensor] | None:
        """Residuals for the whole batch; zeros for places that no map acts on."""
        total: list[Tensor] | None = None
        for name in sorted({place.acting for place in places if place.acting is not None}):
            positions = [at for at, place in enumerate(places) if place.acting == name]
            parts = self._control(name, [places[at] for at in positions], sample, positions)
            if len(positions) == len(sample):
                return parts
            if total is None:
                total = [part.new_zeros(len(sample), *part.shape[1:]) for part in parts]
            index = to_device(torch.tensor(positions), sample.device)
            for whole, part in zip(total, parts, strict=True):
                whole.index_copy_(0, index, part[: len(positions)])
        return total

    def _control(
        self, name: str, places: Sequence[Place], sample: Tensor, positions: Sequence[int]
    ) -> list[Tensor]:
        """Residuals of one ControlNet for its places, perhaps padded."""
        padded = self._padded(places)
        index = torch.tensor([*positions, *[positions[-1]] * (len(padded) - len(places))])
        scale = torch.tensor([place.control.scale for place in padded], dtype=sample.dtype)
        return self._networks.control(
            name,
            sample.index_select(0, to_device(index, sample.device)),
            torch.stack([place.control.emb[place.index, place.row.step] for place in padded]),
            self._contexts.control(name, padded),
            torch.cat([place.control.hint for place in padded]),
            to_device(scale, sample.device),
        )


def _failure(*, memory: bool) -> JobFailed:
    if memory:
        return OutOfMemory("The picture does not fit into the GPU's memory even alone.")
    return EngineFault("The engine failed at this job; its log has the cause.")
