"""The networks that run at every step, for one model, as they are (`compiling.py` compiles them).

This is the seam for memory: everything large that a step allocates is allocated in here, and
tests take its place to run out of it. It knows nothing of rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from workers.engine.attention import Context
from workers.engine.determinism import by_rule
from workers.engine.forward import control_forward, unet_forward
from workers.engine.loading import LoadedModel


class Networks:
    """UNet and ControlNets of a loaded model."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self.dtype = model.dtype

    def padded(self, places: int, height: int, width: int) -> int:  # noqa: ARG002 (see compiling.py)
        """The batch size at which `places` of latents `height` x `width` are run."""
        return places

    def prepare(self, height: int, width: int, counts: Sequence[int]) -> int:  # noqa: ARG002 (as above)
        """Make ready for latents of `height` x `width` in batches of `counts`; here, nothing.

        `counts` ascend. Returns the largest that may be run, 0 where not even the first fits.
        """
        return counts[-1]

    def seal(self) -> None:
        """Everything is ready; here, nothing changes."""

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """Inside, a batch gives the same bytes after every start; see `repeatable.py`."""
        controls = [control.model for control in self._model.controlnets.values()]
        with by_rule([self._model.unet, *controls]):
            yield

    def denoise(
        self, sample: Tensor, emb: Tensor, context: Context, residuals: Sequence[Tensor] | None
    ) -> Tensor:
        """The UNet's output for the whole batch; arguments as `unet_forward`'s."""
        return unet_forward(self._model.unet, sample, emb, context, residuals)

    def control(
        self, name: str, sample: Tensor, emb: Tensor, context: Context, hint: Tensor, scale: Tensor
    ) -> list[Tensor]:
        """The residuals of the ControlNet called `name`; arguments as `control_forward`'s."""
        net = self._model.controlnets[name].model
        return control_forward(net, sample, emb, context, hint, scale)

    def free_memory(self) -> None:
        """Give cached device memory back after running out of it."""
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
