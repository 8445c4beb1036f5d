"""Sends previews of running jobs every so many steps, where the operator wants them."""

import torch
from PIL.Image import Image
from torch import Tensor

from workers.engine import preview
from workers.engine.rows import Row, Work


class Previews:
    """Draws the first row of a job every `every_steps` steps; 0 draws none.

    On CUDA a preview waits for its step, which costs that step its head start.
    """

    def __init__(self, every_steps: int) -> None:
        self._every = every_steps
        self._colours: dict[str, Tensor] = {}

    @property
    def wanted(self) -> bool:
        """Whether the maps from latents to colours are needed at all."""
        return self._every > 0

    def learn(self, model: str, colours: Tensor) -> None:
        """Use `colours`, as `preview.fit` returned them, for rows of `model`."""
        self._colours[model] = colours

    def before(self, row: Row, model_input: Tensor, prediction: Tensor) -> None:
        """Draw what is due of a row before it takes a step.

        `model_input` is what the UNet was given, `prediction` its guided answer, both
        `(1, channels, h, w)`.
        """
        if not self._every or row.index != 0 or (row.step + 1) % self._every != 0:
            return
        if row.work.model.name in self._colours:
            image = self._draw(row, model_input, prediction)
            row.work.preview = (row.step + 1, image)

    def send(self, work: Work) -> None:
        """Send what was drawn for a job."""
        drawn, work.preview = work.preview, None
        if drawn is not None:
            work.listener.on_preview(*drawn)

    def _draw(self, row: Row, model_input: Tensor, prediction: Tensor) -> Image:
        clean = preview.without_noise(row.scheduler, row.timestep, model_input.float(), prediction)
        return preview.render(self._colours[row.work.model.name], torch.nan_to_num(clean))
