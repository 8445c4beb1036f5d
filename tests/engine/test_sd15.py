"""Stable Diffusion 1.5 in the engine equals diffusers' own pipelines, alone and in a batch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)

from service.core.catalog import Catalog, load_catalog
from service.core.errors import ConfigurationError
from service.core.param_types import IpTarget
from service.core.params import GenerateRequest
from service.core.settings import ROOT, Device
from tests.engine import tiny_sd15
from tests.engine.conftest import Stepper, control_map, job, picture, request
from workers.engine.api import Options
from workers.engine.engine import Engine, load_engine
from workers.engine.schedulers import CLASSES

SAME_AS_PLAIN = 1e-4
SAME_IN_A_BATCH = 1e-4


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return tiny_sd15.write(tmp_path_factory.mktemp("sd15"))


@pytest.fixture(scope="module")
def engine(sd15: Catalog) -> Iterator[Engine]:
    engine = load_engine(sd15, Options(slots=8, threads=1), device=Device.CPU)
    yield engine
    engine.stop()


@pytest.fixture
def stepper(engine: Engine) -> Iterator[Stepper]:
    own = Engine(engine.models, "sd15", Options(slots=8, threads=1), device=torch.device("cpu"))
    yield Stepper(own)
    own.stop()


TARGETS = {
    IpTarget.STYLE: {"up": {"block_1": 1.0}},
    IpTarget.STYLE_LAYOUT: {"up": {"block_1": 1.0}, "down": {"block_1": 1.0}, "mid": 1.0},
}
"""What `set_ip_adapter_scale` takes for each target on the tiny UNet."""


def sent(**fields: Any) -> GenerateRequest:
    """A request on the tiny SD 1.5."""
    return request(**{"model": "sd15", **fields})


def plain(catalog: Catalog, wanted: GenerateRequest) -> np.ndarray:
    """What diffusers' pipeline makes of a request, `(pictures, height, width, 3)`."""
    entry = catalog.models[wanted.model]
    kind: Any = StableDiffusionPipeline
    parts: dict[str, Any] = {"safety_checker": None}
    options: dict[str, Any] = {}
    if wanted.controls:
        (control,) = wanted.controls
        kind = StableDiffusionControlNetPipeline
        parts["controlnet"] = ControlNetModel.from_pretrained(entry.controlnets["outline"].path)
        options = {
            "image": control_map(),
            "controlnet_conditioning_scale": control.scale,
            "control_guidance_start": control.start,
            "control_guidance_end": control.end,
        }
    pipe = kind.from_pretrained(entry.base.path, **parts)
    adapter = entry.adapters[wanted.adapter]
    pipe.load_ip_adapter(adapter.path, subfolder=adapter.subfolder, weight_name=adapter.weight_name)
    pipe.set_ip_adapter_scale(TARGETS.get(wanted.ip_target, wanted.ip_scale[0]))
    pipe.scheduler = CLASSES[wanted.scheduler].from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pictures: np.ndarray = pipe(
        prompt=wanted.prompt,
        negative_prompt=wanted.negative_prompt or None,
        ip_adapter_image=[[picture(index) for index in range(len(wanted.images))]],
        width=wanted.width,
        height=wanted.height,
        num_inference_steps=wanted.steps,
        guidance_scale=wanted.guidance_scale,
        num_images_per_prompt=wanted.num_images,
        generator=[
            torch.Generator().manual_seed(wanted.seed + index) for index in range(wanted.num_images)
        ],
        output_type="np",
        **options,
    ).images
    return pictures


CASES = {
    "style only": sent(ip_target="style", ip_scale=1.0),
    "style and layout": sent(ip_target="style_layout", ip_scale=1.0),
    "base": sent(),
    "base, text": sent(prompt="a red star", negative_prompt="blue"),
    "Plus, two images": sent(adapter="plus", images=2),
    "full": sent(adapter="full"),
    "no guidance": sent(guidance_scale=1.0),
    "ControlNet in a window": sent(control={"scale": 0.8, "start": 0.2, "end": 0.7}, steps=5),
    "velocity": sent(model="sd15-v", scheduler="euler"),
    "two pictures of another size": sent(num_images=2, width=96, height=72),
}


@pytest.mark.parametrize("wanted", CASES.values(), ids=CASES.keys())
def test_a_job_alone_equals_the_plain_pipeline(
    stepper: Stepper, sd15: Catalog, wanted: GenerateRequest
) -> None:
    stepper.run(job(wanted))
    ours, theirs = stepper.decoded("job"), plain(sd15, wanted)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= SAME_AS_PLAIN


def test_rows_of_a_mixed_batch_equal_the_same_jobs_alone(stepper: Stepper) -> None:
    mixed = [case for case in CASES.values() if (case.model, case.width) == ("sd15", 64)]
    results = stepper.together(*(job(case, f"mixed-{i}") for i, case in enumerate(mixed)))
    assert max(result.max_batch for result in results) >= 2 * len(mixed) - 1
    for number, case in enumerate(mixed):
        stepper.run(job(case, "alone"))
        assert stepper.difference("alone", f"mixed-{number}") <= SAME_IN_A_BATCH


def test_it_warms_up_and_profiles_itself(sd15: Catalog) -> None:
    only = sd15.model_copy(update={"models": {"sd15": sd15.models["sd15"]}})
    engine = load_engine(only, Options(slots=2, threads=1), device=Device.CPU)
    engine.warm_up()
    assert engine.row_steps_per_second > 0
    engine.stop()


def test_a_base_of_another_family_is_refused_by_name(sd15: Catalog, catalog: Catalog) -> None:
    wrong = catalog.models["tiny"].model_copy(update={"family": "sd15"})
    with pytest.raises(ConfigurationError, match=r"text_time.*family"):
        load_engine(
            catalog.model_copy(update={"models": {"tiny": wrong}}),
            Options(threads=1),
            device=Device.CPU,
        )


def test_the_shipped_models_yaml_names_all_of_the_authors_adapters() -> None:
    shipped = load_catalog(ROOT / "models" / "sd15.yaml").models["sd15"]
    assert shipped.family == "sd15"
    assert set(shipped.adapters) == {"base", "light", "plus", "plus-face", "full-face"}
