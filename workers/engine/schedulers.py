"""The samplers of the contract as diffusers' schedulers, one object for each row.

Made as the plain pipeline's user makes them: `X.from_config(pipe.scheduler.config, ...)`. Their
tables stay on the CPU, so that a step never waits for the GPU. Random numbers come from the row's
own generator.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Final

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from service.core.errors import ConfigurationError, UnservableRequest
from service.core.param_types import SchedulerName, SigmaSchedule

CLASSES: Final[Mapping[SchedulerName, Any]] = {
    SchedulerName.DDIM: DDIMScheduler,
    SchedulerName.EULER: EulerDiscreteScheduler,
    SchedulerName.EULER_A: EulerAncestralDiscreteScheduler,
    SchedulerName.DPMPP_2M: DPMSolverMultistepScheduler,
    SchedulerName.DPMPP_2M_SDE: DPMSolverMultistepScheduler,
    SchedulerName.HEUN: HeunDiscreteScheduler,
    SchedulerName.UNIPC: UniPCMultistepScheduler,
    SchedulerName.LCM: LCMScheduler,
    SchedulerName.TCD: TCDScheduler,
}
FLAGS: Final[Mapping[SigmaSchedule, str]] = {
    SigmaSchedule.KARRAS: "use_karras_sigmas",
    SigmaSchedule.EXPONENTIAL: "use_exponential_sigmas",
    SigmaSchedule.BETA: "use_beta_sigmas",
}
TRIED_STEPS: Final = 4
"""Of each sampler at start-up."""


def options(name: SchedulerName, sigmas: SigmaSchedule) -> dict[str, Any]:
    """What `from_config` is told beside the model's configuration."""
    chosen: dict[str, Any] = {}
    if sigmas is not SigmaSchedule.DEFAULT:
        chosen = {flag: schedule is sigmas for schedule, flag in FLAGS.items()}
    if name is SchedulerName.DPMPP_2M_SDE:
        chosen["algorithm_type"] = "sde-dpmsolver++"
    return chosen


def make(
    name: SchedulerName,
    config: Any,
    steps: int,
    *,
    sigmas: SigmaSchedule = SigmaSchedule.DEFAULT,
    start: int = 0,
) -> Any:
    """A scheduler set to `steps` denoising steps, from the configuration of the model's own.

    It begins with step `start`. Raises `UnservableRequest` where the sampler cannot do so many
    steps (LCM and TCD: 50 as trained).
    """
    kind, chosen = CLASSES[name], options(name, sigmas)
    takes_it = "clip_sample" in inspect.signature(kind.__init__).parameters
    if takes_it and not _is_given("clip_sample", config):
        # diffusers' default clips pixels to -1 to 1, which destroys latents.
        chosen["clip_sample"] = False
    scheduler = kind.from_config(config, **chosen)
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


def step(
    scheduler: Any,
    prediction: Tensor,
    timestep: Tensor,
    latents: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The latents after one step, as diffusers' pipelines take it (eta 0)."""
    parameters = inspect.signature(scheduler.step).parameters
    arguments: dict[str, Any] = {}
    if "generator" in parameters:
        arguments["generator"] = generator
    if "eta" in parameters:
        arguments["eta"] = 0.0
    stepped: Tensor = scheduler.step(prediction, timestep, latents, return_dict=False, **arguments)[
        0
    ]
    return stepped


def check_class(config: Mapping[str, Any], name: str) -> None:
    """Raise `ConfigurationError` where the file of scheduler `name` says what none can take.

    Its class need not be a served one; its settings are what counts.
    """
    declared = config.get("_class_name")
    if declared is not None and not (isinstance(declared, str) and hasattr(diffusers, declared)):
        raise ConfigurationError(
            f"scheduler {name} is a {declared!r}, which diffusers does not have"
        )
    for kind in {*CLASSES.values()}:
        for key, parameter in inspect.signature(kind.__init__).parameters.items():
            value, default = config.get(key), parameter.default
            wanted = {int: (int,), float: (int, float)}.get(type(default), (type(default),))
            plain = isinstance(default, bool | int | float | str)
            if plain and value is not None and type(value) not in wanted:
                raise ConfigurationError(
                    f"scheduler {name}: {key} in scheduler_config.json is {value!r}, where a value "
                    f"such as {default!r} is needed"
                )


def check(config: Any, channels: int, name: str) -> None:
    """Make every sampler and let it take steps.

    Raises `ConfigurationError` where the configuration of the model called `name` makes one fail.
    """
    for sampler in SchedulerName:
        for sigmas in SigmaSchedule:
            if sigmas is not SigmaSchedule.DEFAULT and not sampler.takes_sigmas:
                continue
            try:
                _try(sampler, sigmas, config, channels)
            except Exception as error:
                raise ConfigurationError(
                    f"the scheduler configuration of {name} does not work with the sampler "
                    f"{sampler}, sigmas {sigmas}: {error}"
                ) from error


def _try(sampler: SchedulerName, sigmas: SigmaSchedule, config: Any, channels: int) -> None:
    scheduler = make(sampler, config, TRIED_STEPS, sigmas=sigmas)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, channels, 2, 2, generator=generator) * scheduler.init_noise_sigma
    for timestep in visited(scheduler):
        scaled = scheduler.scale_model_input(latents, timestep)
        latents = step(scheduler, scaled * 0, timestep, latents, generator)
    if not bool(torch.isfinite(latents).all()):
        raise ValueError("it gives NaN or infinity")


def _is_given(key: str, config: Any) -> bool:
    """Whether a configuration file names `key`; diffusers fills what is absent with defaults."""
    return key in config and key not in config.get("_use_default_values", ())
