"""Requests that steer a row, one for every way, by what they show."""

from service.core.param_types import SchedulerName, SigmaSchedule
from service.core.params import GenerateRequest
from tests.engine.conftest import request, uploads

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
    "a type of a union": request(control={"type": "lines"}),
    "another type of it, in a window": request(
        control={"type": "poses", "scale": 0.7, "start": 0.25}, steps=4
    ),
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
