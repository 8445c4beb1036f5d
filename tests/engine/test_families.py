"""A family is what implements the protocol: the engine runs one that shares nothing with SDXL."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from service.core.catalog import Catalog
from service.core.errors import ConfigurationError, UnservableRequest
from service.core.params import GenerateRequest
from service.core.settings import Device
from tests.engine import toy
from tests.engine.conftest import Counts, Stepper, job, picture, request
from workers.engine.api import Options
from workers.engine.engine import Engine, load_engine
from workers.engine.models import FAMILIES


@pytest.fixture(scope="module")
def both(catalog: Catalog) -> Iterator[tuple[Engine, Counts]]:
    """An engine that has warmed up the tiny SDXL and the toy model."""
    tiny = catalog.models["tiny"]
    entry = tiny.model_copy(update={"family": "toy", "controlnets": {}, "adapters": tiny.adapters})
    models = {"toy": entry.model_copy(update={"adapters": {"base": tiny.adapters["base"]}})}
    counts = Counts()
    engine = load_engine(
        catalog.model_copy(update={"default": "toy", "models": models | dict(catalog.models)}),
        Options(slots=8, threads=1, observer=counts, preview_every_steps=1),
        device=Device.CPU,
        families={**FAMILIES, "toy": toy.load},
    )
    engine.warm_up()
    yield engine, counts
    engine.stop()


@pytest.fixture
def stepper(both: tuple[Engine, Counts]) -> Stepper:
    """An engine over both models that the test steps by hand."""
    engine = Engine(both[0].models, "toy", Options(slots=8, threads=1), device=torch.device("cpu"))
    return Stepper(engine)


def reference(wanted: GenerateRequest) -> np.ndarray:
    """What the toy model makes of a request, written out without the engine."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(wanted.steps)
    generator = torch.Generator().manual_seed(wanted.seed)
    latents = torch.randn(1, 3, wanted.height // 4, wanted.width // 4, generator=generator)
    adapter = toy.ToyAdapter()
    image = wanted.ip_scale[0] * adapter.encode(adapter.preprocess(picture(0)))
    targets = (toy.colour_of(wanted.negative_prompt)[None], toy.colour_of(wanted.prompt) + image)
    for time in scheduler.timesteps:
        negative, positive = (
            (latents - target[:, :, None, None] * (1 - time / 1000)).tanh() for target in targets
        )
        noise = negative + wanted.guidance_scale * (positive - negative)
        latents = scheduler.step(noise, time, latents).prev_sample
    pixels = (latents / 2 + 0.5).clamp(0, 1)
    return pixels.permute(0, 2, 3, 1).numpy().repeat(4, 1).repeat(4, 2)


def test_a_family_of_another_kind_runs_through_the_whole_engine(
    both: tuple[Engine, Counts],
) -> None:
    """It was warmed up, measured and has previews like any other; jobs end with pictures."""
    engine, counts = both
    assert engine.row_steps_per_second > 0
    before = len(counts.forwards)
    (image,) = engine.submit(job(request(model="toy", prompt="a"))).result(60).images
    assert image.size == (64, 64)
    assert counts.forwards[before:] == [2] * 4


def test_its_pictures_are_those_of_its_own_plain_loop(stepper: Stepper) -> None:
    """Guidance, image prompt, text and sampler mean for it what they mean for SDXL."""
    wanted = request(model="toy", prompt="some text", negative_prompt="other", steps=7)
    stepper.run(job(wanted))
    assert np.abs(stepper.decoded("job") - reference(wanted)).max() <= 1e-5


def test_its_rows_share_batches_and_models_run_beside_each_other(stepper: Stepper) -> None:
    """Rows of one model share forwards; those of another one run in turns of their own."""
    wanted = [
        request(model="toy", prompt="a", seed=1),
        request(model="toy", images=2, seed=2, guidance_scale=1.0),
        request(model="toy", seed=3, ip_scale=0.0, scheduler="euler"),
        request(model="tiny", seed=4),
    ]
    results = stepper.together(*(job(each, f"{index}") for index, each in enumerate(wanted)))
    assert [result.max_batch for result in results] == [5, 5, 5, 2]
    for index, each in enumerate(wanted):
        stepper.run(job(each, "alone"))
        assert stepper.difference("alone", f"{index}") <= 1e-4


def test_what_a_family_does_not_have_is_refused(stepper: Stepper) -> None:
    """The toy model has no ControlNets."""
    with pytest.raises(UnservableRequest, match="control_type"):
        stepper.run(job(request(model="toy", control={})))


def test_an_unknown_family_is_refused_at_start_up(catalog: Catalog) -> None:
    """The message names the model, the family and those that there are."""
    entry = catalog.models["tiny"].model_copy(update={"family": "other"})
    changed = catalog.model_copy(update={"models": {"tiny": entry}})
    with pytest.raises(ConfigurationError, match="`family` of tiny is other, not one of sdxl"):
        load_engine(changed, Options(), device=Device.CPU)
