"""The samplers of the contract as diffusers' schedulers, one object for each row.

Made exactly as the plain pipeline's user makes them: `X.from_config(pipe.scheduler.config)`.
Their tables stay on the CPU, so that a step never waits for the GPU.
"""

from typing import Any, Final

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from service.core.errors import UnservableRequest
from service.core.params import SchedulerName

CLASSES: Final[dict[SchedulerName, Any]] = {
    SchedulerName.DDIM: DDIMScheduler,
    SchedulerName.EULER: EulerDiscreteScheduler,
    SchedulerName.DPMPP_2M: DPMSolverMultistepScheduler,
    SchedulerName.UNIPC: UniPCMultistepScheduler,
    SchedulerName.LCM: LCMScheduler,
}
TAKES_GENERATOR: Final = frozenset({SchedulerName.LCM})
"""Samplers that draw noise at each step."""


def make(name: SchedulerName, config: Any, steps: int, start: int = 0) -> Any:
    """A scheduler set to `steps` denoising steps, from the configuration of the model's own.

    It begins with step `start`.

    Raises `UnservableRequest` where the sampler cannot do so many steps (LCM: 50 as trained).
    """
    scheduler = CLASSES[name].from_config(config)
    try:
        scheduler.set_timesteps(steps, device="cpu")
    except ValueError:
        raise UnservableRequest(
            f"`steps` is {steps}, which the scheduler {name} of this model cannot do"
        ) from None
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start * scheduler.order)
    scheduler.first = start * scheduler.order
    return scheduler


def visited(scheduler: Any) -> Tensor:
    """The timesteps that a scheduler which `make` returned visits, `(forward passes,)`."""
    timesteps: Tensor = scheduler.timesteps[scheduler.first :]
    return timesteps
