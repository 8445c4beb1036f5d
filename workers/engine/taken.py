"""A step that has been started and not yet looked at. It knows nothing of who takes the next."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.batch import Predictions
from workers.engine.rows import Row, Work


@dataclass(frozen=True, slots=True)
class Taken:
    """One step.

    `finite` is a flag a row on the CPU, valid once `done` (CUDA only) has happened; `steps` are
    the steps that each job had then done, `finished` the rows for which it was the last.
    """

    rows: tuple[Row, ...]
    finite: Tensor
    done: torch.cuda.Event | None
    steps: Mapping[Work, int]
    finished: tuple[Row, ...]


def mark(predictions: Predictions, device: torch.device) -> Taken:
    """Note where the rows of `predictions` stand now that they have taken their step."""
    steps = {row.work: row.work.step for row in predictions.rows}
    finished = tuple(row for row in predictions.rows if row.done)
    if device.type != "cuda":
        return Taken(predictions.rows, predictions.finite, None, steps, finished)
    finite = predictions.finite.to("cpu", non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return Taken(predictions.rows, finite, done, steps, finished)
