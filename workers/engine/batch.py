"""One forward pass over rows of different jobs: put together, run, taken apart.

A batch that does not fit into memory is split; a job whose rows fail even alone is named.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from service.core.errors import EngineFault, JobFailed, OutOfMemory
from workers.engine.attention import Context
from workers.engine.compile import Networks
from workers.engine.conditioning.base import BatchEntry, Conditioning, Forward, Joined, JoinMemo
from workers.engine.device import to_device
from workers.engine.rows import Row

log = logging.getLogger(__name__)

Outputs = dict[tuple[Row, int], Tensor]
"""The UNet's output `(channels, h, w)` by row and branch."""
Branch = tuple[Row, int]
"""A row and one of its branches."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """The result of a turn: predictions for the rows that are well, and why others failed.

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

    def __init__(
        self,
        networks: Networks,
        ways: Sequence[Conditioning],
        on_out_of_memory: Callable[[], None],
    ) -> None:
        self._networks = networks
        self._ways = ways
        self._on_out_of_memory = on_out_of_memory
        self._memo = JoinMemo()
        self._ran_out = False

    def predict(self, rows: Sequence[Row]) -> Predictions:
        """One forward over all `rows` at their own steps, then guidance.

        Raises `torch.AcceleratorError` where the device is lost.
        """
        deterministic = rows[0].work.job.request.deterministic
        with self._networks.deterministic() if deterministic else nullcontext():
            return self._predict(rows)

    def _predict(self, rows: Sequence[Row]) -> Predictions:
        self._ran_out = False
        inputs, errors = self._inputs(rows)
        branches = [(row, branch) for row in rows if row in inputs for branch in row.branches]
        outputs, more_errors = self._run(branches, inputs) if branches else ({}, {})
        errors |= more_errors
        well = tuple(row for row in rows if row not in errors)
        failed = tuple(errors.items())
        if not well:
            empty = torch.empty(0)
            return Predictions((), empty, empty, empty, failed, self._ran_out)
        first = torch.stack([outputs[row, row.branches[0]] for row in well]).float()
        last = torch.stack([outputs[row, row.branches[-1]] for row in well]).float()
        scales = torch.tensor([row.conditions.guidance_scale for row in well])
        # Unguided rows have one branch: first and last are the same, the scale has no effect.
        scale = to_device(scales, first.device)[:, None, None, None]
        values = torch.addcmul(first, last - first, scale)
        finite = torch.isfinite(values).flatten(1).all(1)
        joined = torch.cat([inputs[row] for row in well])
        return Predictions(well, values, joined, finite, failed, self._ran_out)

    def _inputs(self, rows: Sequence[Row]) -> tuple[dict[Row, Tensor], dict[Row, JobFailed]]:
        """The UNet's input for each row, and the rows whose sampler fails to give it."""
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
        self, branches: Sequence[Branch], inputs: dict[Row, Tensor]
    ) -> tuple[Outputs, dict[Row, JobFailed]]:
        try:
            output = self._forward(branches, inputs)
        except torch.AcceleratorError:
            raise  # the device is lost, and with it every row
        except Exception as error:
            memory = isinstance(error, torch.OutOfMemoryError)
            if len(branches) == 1:
                log.exception("a row failed alone")
            else:
                log.warning("a batch of %d entries failed and is split: %s", len(branches), error)
        else:
            return dict(zip(branches, output.unbind(), strict=True)), {}
        # Only here are the frames gone that held the failed forward's memory.
        if memory:
            self._free_memory()
        if len(branches) == 1:
            return {}, {branches[0][0]: _failure(memory=memory)}
        half = len(branches) // 2
        outputs, errors = self._run(branches[:half], inputs)
        more_outputs, more_errors = self._run(branches[half:], inputs)
        return outputs | more_outputs, errors | more_errors

    def _free_memory(self) -> None:
        self._ran_out = True
        self._memo.clear()
        self._networks.free_memory()
        self._on_out_of_memory()

    def _forward(self, branches: Sequence[Branch], inputs: dict[Row, Tensor]) -> Tensor:
        """The networks' output for each of `branches`."""
        count = len(branches)
        size = self._networks.padded(count, *branches[0][0].latents.shape[-2:])
        padded = [*branches, *[branches[-1]] * (size - count)]
        sample = torch.cat([inputs[row] for row, _ in padded])
        entries = [row.entry(branch) for row, branch in padded]
        joined = self._memo.of(entries)
        forward = Forward(
            networks=self._networks,
            joined=joined,
            entries=entries,
            count=count,
            sample=sample,
            context=self._context(entries, joined),
        )
        for way in self._ways:
            way.act(forward)
        with ExitStack() as stack:
            for context in forward.around:
                stack.enter_context(context)
            return self._networks.denoise(
                forward.sample,
                forward.emb,
                forward.context,
                forward.residuals,
                forward.features,
                changed=bool(forward.around),
            )[:count]

    def _context(self, entries: Sequence[BatchEntry], joined: Joined) -> Context:
        key = tuple(way.key(entry) for entry in entries for way in self._ways)

        def join() -> Context:
            context = Context(torch.empty(0))
            for way in self._ways:
                context = way.join(entries, context)
            return context

        return joined.get("context", key, join)


def _failure(*, memory: bool) -> JobFailed:
    if memory:
        return OutOfMemory("The picture does not fit into the GPU's memory even alone.")
    return EngineFault("The engine failed at this job; its log has the cause.")
