"""Every way to steer a row: alone as the diffusers pipeline gives it, and in a mixed batch."""

import logging
import shutil
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)

from bench.engine.plain import Plain
from service.core.catalog import Catalog, Lora, Source
from service.core.param_types import IpTarget, SchedulerName, SigmaSchedule
from service.core.params import GenerateRequest
from service.core.settings import Device
from tests.engine import tiny_lora
from tests.engine.conftest import Stepper, job, read, request, uploads
from workers.engine.api import Options
from workers.engine.engine import Engine, load_engine

log = logging.getLogger(__name__)

SAME_AS_PLAIN = 5e-5
SAME_IN_A_BATCH = 1e-4
MATTERS = 1e-2

TARGETS = {
    IpTarget.STYLE: {"up": {"block_0": [0, 1]}},
    IpTarget.LAYOUT: {"down": {"block_1": [1]}},
    IpTarget.STYLE_LAYOUT: {"up": {"block_0": [0, 1]}, "down": {"block_1": [1]}},
}
"""What `set_ip_adapter_scale` takes for each target on the tiny UNet."""
NEW_SHAPE = {"low_cpu_mem_usage": False, "ignore_mismatched_sizes": True}
"""Loads a UNet with a first convolution of its own, for more channels."""
TWO = {"images": 2, "image_adapter": ("base", "plus")}

CASES: dict[str, GenerateRequest] = {
    "guidance from a quarter to three quarters": request(
        steps=8, guidance_start=0.25, guidance_end=0.75
    ),
    "image prompt from a third on": request(steps=6, ip_start=0.3, ip_scale=1.0),
    "image prompt in the first half": request(steps=6, ip_end=0.5, adapter="plus"),
    "style only": request(ip_target="style", ip_scale=1.5),
    "layout only": request(ip_target="layout", adapter="plus"),
    "style and layout": request(ip_target="style_layout", images=2),
    "negative image": request(negative_image=uploads(5)),
    "negative image, plus": request(adapter="plus", negative_image=uploads(5)),
    "two negative images": request(images=2, negative_image=uploads(5, 6)),
    "two adapters": request(**TWO, ip_scale=(0.4, 0.9)),
    "two adapters, three images, one target": request(
        images=3, image_adapter=("plus", "base", "plus"), ip_scale=(0.5, 1.2), ip_target="style"
    ),
    "two maps": request(
        control={
            "image": ["map", "map2"],
            "type": ("outline", "edges"),
            "scale": (0.7, 0.4),
            "start": (0.0, 0.3),
            "end": (0.5, 1.0),
        },
        steps=6,
    ),
    "two maps of one type": request(control={"image": ["map", "map2"], "scale": (1.0, 0.5)}),
    "T2I-Adapter": request(control={"type": "sketch"}),
    "T2I-Adapter in the first half, plus, odd size": request(
        control={"type": "sketch", "scale": 0.6, "end": 0.5},
        adapter="plus",
        steps=6,
        width=96,
        height=80,
    ),
    "img2img": request(init_image=uploads("init"), strength=0.6, steps=5, prompt="a star"),
    "img2img, euler, no guidance": request(
        init_image=uploads("init"), strength=0.5, steps=8, scheduler="euler", guidance_scale=1.0
    ),
    "img2img with a map in a window, plus, dpmpp_2m": request(
        init_image=uploads("init"),
        strength=0.75,
        steps=8,
        adapter="plus",
        control={"end": 0.5},
        scheduler="dpmpp_2m",
    ),
    "inpaint": request(
        init_image=uploads("init"), mask_image=uploads("middle"), strength=1.0, prompt="a ring"
    ),
    "inpaint in part, blurred, unipc": request(
        init_image=uploads("init"),
        mask_image=uploads("left"),
        mask_blur=3,
        strength=0.7,
        steps=7,
        scheduler="unipc",
    ),
    "inpaint, lcm": request(
        init_image=uploads("init"),
        mask_image=uploads("right"),
        strength=0.8,
        steps=5,
        scheduler="lcm",
    ),
    "inpaint with a map, plus": request(
        init_image=uploads("init"),
        mask_image=uploads("middle"),
        strength=0.9,
        steps=10,
        adapter="plus",
        control={"scale": 0.7},
    ),
    "inpaint with nine channels": request(
        model="nine", init_image=uploads("init"), mask_image=uploads("middle"), strength=1.0
    ),
    "inpaint in part with nine channels, plus, euler": request(
        model="nine",
        init_image=uploads("init"),
        mask_image=uploads("left"),
        strength=0.6,
        steps=5,
        adapter="plus",
        scheduler="euler",
    ),
    **{
        f"{sampler}, {sigmas}": request(scheduler=sampler, sigmas=sigmas, steps=5)
        for sampler in SchedulerName
        for sigmas in SigmaSchedule
        if sigmas is SigmaSchedule.DEFAULT or sampler.takes_sigmas
    },
    "img2img, heun": request(
        init_image=uploads("init"), strength=0.6, steps=5, scheduler="heun", control={"end": 0.5}
    ),
    "inpaint, euler_a": request(
        init_image=uploads("init"),
        mask_image=uploads("middle"),
        strength=0.7,
        steps=6,
        scheduler="euler_a",
    ),
    "clip_skip": request(clip_skip=1, prompt="a red star", negative_prompt="blue"),
    "LoRA, kohya's format": request(lora=("pencil:0.8",), prompt="a red star"),
    "LoRA, diffusers' format, plus": request(lora=("clay",), adapter="plus", prompt="a ring"),
    "two LoRAs, no guidance": request(lora=("pencil:0.5", "clay:1.2"), guidance_scale=1.0),
    "LoRA with a map, img2img": request(
        lora=("pencil:1",), control={}, init_image=uploads("init"), strength=0.6, steps=5
    ),
    "masks": request(images=2, image_mask=uploads("left", "right"), ip_scale=1.0),
    "masks, two adapters": request(
        **TWO, image_mask=uploads("middle", "left"), ip_scale=(1.0, 0.6), width=96, height=72
    ),
}


@pytest.fixture(scope="module")
def rich(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The tiny model with a second ControlNet and a T2I-Adapter."""
    entry = catalog.models["tiny"]
    folder = tmp_path_factory.mktemp("rich")
    torch.manual_seed(1)
    control = ControlNetModel.from_pretrained(entry.controlnets["outline"].location)
    for weight in control.parameters():
        weight.data.add_(0.02 * torch.randn_like(weight))
    control.save_pretrained(folder / "edges")
    T2IAdapter(
        channels=[16, 32, 32, 32],
        num_res_blocks=1,
        downscale_factor=16,
        adapter_type="full_adapter_xl",
    ).save_pretrained(folder / "sketch")
    controlnets = {**entry.controlnets, "edges": Source(path=folder / "edges")}
    sketch = {"sketch": Source(path=folder / "sketch")}
    pipe = StableDiffusionXLPipeline.from_pretrained(entry.base.location)
    kohya = tiny_lora.kohya(pipe, folder / "kohya.safetensors")
    attention = tiny_lora.diffusers(pipe, folder / "attention.safetensors")
    loras = {
        name: Lora(path=file.parent, weight_name=file.name)
        for name, file in (("pencil", kohya), ("clay", attention))
    }
    changes = {"controlnets": controlnets, "t2i_adapters": sketch, "loras": loras}
    nine = shutil.copytree(entry.base.location, folder / "nine")
    unet = UNet2DConditionModel.from_pretrained(nine / "unet", in_channels=9, **NEW_SHAPE)
    unet.save_pretrained(nine / "unet")
    models = {
        "tiny": entry.model_copy(update=changes),
        "nine": entry.model_copy(update={"base": Source(path=nine), "controlnets": {}}),
    }
    return catalog.model_copy(update={"models": models})


@pytest.fixture(scope="module")
def loaded(rich: Catalog) -> Iterator[Engine]:
    """Instead of the plain tiny model of other tests."""
    engine = load_engine(rich, Options(threads=1), device=Device.CPU)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def steered(rich: Catalog) -> Mapping[str, Plain]:
    """The plain pipelines of each model, with the tiny UNet's blocks for each target."""
    cpu = torch.device("cpu")
    return {name: Plain(entry, cpu, TARGETS) for name, entry in rich.models.items()}


@pytest.mark.parametrize("wanted", CASES.values(), ids=CASES.keys())
def test_a_job_alone_equals_the_plain_pipeline(
    stepper: Stepper, steered: Mapping[str, Plain], wanted: GenerateRequest
) -> None:
    """The same request with the same seed gives the same pixels as diffusers itself."""
    theirs = steered[wanted.model].pictures(wanted, read)
    stepper.run(job(wanted))
    difference = np.abs(stepper.decoded("job") - theirs).max()
    log.info("largest difference to diffusers: %.1e", difference)
    assert difference <= SAME_AS_PLAIN


def test_rows_that_are_steered_in_every_way_share_batches(stepper: Stepper) -> None:
    """Each comes out as if it had run alone."""
    mixed = [
        wanted.model_copy(update={"seed": seed})
        for seed, wanted in enumerate(CASES.values())
        if (wanted.width, wanted.height, wanted.model) == (64, 64, "tiny")
    ]
    results = stepper.together(*(job(wanted, f"{i}") for i, wanted in enumerate(mixed)))
    assert max(result.max_batch for result in results) >= 12
    for index, wanted in enumerate(mixed):
        stepper.run(job(wanted, "alone"))
        assert stepper.difference("alone", f"{index}") <= SAME_IN_A_BATCH, f"row {index}"
