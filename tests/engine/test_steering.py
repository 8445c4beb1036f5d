"""Every way to steer a row: alone as the diffusers pipeline gives it, and in a mixed batch."""

import inspect
import logging
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file

from bench.engine.plain import Plain
from service.core.catalog import Catalog, ControlNetSource, FusedLora, Lora, Source
from service.core.errors import ConfigurationError, UnservableRequest
from service.core.param_types import IpTarget
from service.core.params import GenerateRequest
from service.core.settings import Device
from tests.engine import tiny_lora
from tests.engine.conftest import Stepper, job, read, request, uploads
from tests.engine.steering_cases import CASES, TWO
from workers.engine.api import EngineJob, Options
from workers.engine.attention import Context, stack_texts
from workers.engine.conditioning import control as control_maps
from workers.engine.conditioning import text as texts
from workers.engine.engine import Engine, load_engine

log = logging.getLogger(__name__)

SAME_AS_PLAIN = 1e-4
SAME_IN_A_BATCH = 1e-4
MATTERS = 1e-2

TARGETS = {
    IpTarget.STYLE: {"up": {"block_0": [0, 1]}},
    IpTarget.LAYOUT: {"down": {"block_1": [1]}},
    IpTarget.STYLE_LAYOUT: {"up": {"block_0": [0, 1]}, "down": {"block_1": [1]}},
}
"""What `set_ip_adapter_scale` takes for each target on the tiny UNet."""


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
    outline = ControlNetModel.from_pretrained(folder / "edges")
    kept = inspect.signature(ControlNetUnionModel.__init__).parameters.keys()
    shape = {name: value for name, value in outline.config.items() if name in kept}
    width = outline.config.block_out_channels[0]
    union = ControlNetUnionModel(
        **shape, num_control_type=4, num_trans_channel=width, num_proj_channel=width
    )
    for weight in union.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    # Of a size at which what the union's transformer does can be seen in a picture.
    for part in (union.controlnet_cond_embedding, union.transformer_layes, union.spatial_ch_projs):
        for weight in part.parameters():
            if weight.dim() > 1:
                torch.nn.init.kaiming_normal_(weight)
    union.save_pretrained(folder / "union")
    controlnets = {
        **entry.controlnets,
        "edges": ControlNetSource(path=folder / "edges"),
        "lines": ControlNetSource(path=folder / "union", control_mode=1),
        "poses": ControlNetSource(path=folder / "union", control_mode=3),
    }
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
    unet = UNet2DConditionModel.from_pretrained(nine / "unet")
    more = 0.1 * torch.randn(len(unet.conv_in.weight), 5, 3, 3)
    unet.conv_in = torch.nn.Conv2d(9, len(more), 3, padding=1).requires_grad_(requires_grad=False)
    unet.conv_in.weight.copy_(torch.cat([pipe.unet.conv_in.weight, more], dim=1))
    unet.register_to_config(in_channels=9)
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


def test_a_map_made_here_is_that_of_opencv_and_comes_back(stepper: Stepper) -> None:
    """The job with `canny` equals the one that sends the edges, and its result has them."""
    made = stepper.run(job(request(control={"preprocess": "canny"}), "made"))
    assert stepper.run(job(request(control={}), "sent")).maps == ()
    (edges,) = made.maps
    theirs = cv2.Canny(np.asarray(read("inputs/job/map.png")), 100, 200)
    assert np.array_equal(np.asarray(edges), np.stack([theirs] * 3, axis=-1))

    def read_edges(key: str) -> Image.Image:
        return edges if "map" in key else read(key)

    stepper.run(EngineJob("edges", request(control={}), read_edges))
    assert np.array_equal(stepper.decoded("made"), stepper.decoded("edges"))
    assert stepper.difference("made", "sent") > MATTERS


def test_a_union_s_types_share_one_network_and_differ(rich: Catalog, stepper: Stepper) -> None:
    controlnets = stepper.engine.models["tiny"].controlnets
    assert controlnets["lines"].model is controlnets["poses"].model
    for kind in ("lines", "poses"):
        stepper.run(job(request(control={"type": kind}), kind))
    assert stepper.difference("lines", "poses") > 1e-3
    entry = rich.models["tiny"]
    source = entry.controlnets["lines"]
    for control_mode, told in ((4, "it has 4 modes"), (None, "give the `control_mode`")):
        wrong = source.model_copy(update={"control_mode": control_mode})
        changed = entry.model_copy(update={"controlnets": {"lines": wrong}})
        with pytest.raises(ConfigurationError, match=told):
            load_engine(
                Catalog(default="tiny", models={"tiny": changed}), Options(), device=Device.CPU
            )


def test_jobs_of_one_union_type_do_not_change_each_other(stepper: Stepper) -> None:
    """Their maps differ in brightness, which is what the union's transformer takes of a map."""
    maps = ("left", "middle")
    jobs = [request(control={"type": "lines", "image": [name]}) for name in maps]
    results = stepper.together(*(job(one, name) for one, name in zip(jobs, maps, strict=True)))
    assert max(result.max_batch for result in results) == 4
    for one, name in zip(jobs, maps, strict=True):
        stepper.run(job(one, "alone"))
        assert stepper.difference("alone", name) <= SAME_IN_A_BATCH, name


def test_what_is_outside_the_mask_keeps_its_pixels(stepper: Stepper) -> None:
    """Exactly; a blurred edge lies between the original and what was painted."""
    wanted = request(init_image=uploads("init"), mask_image=uploads("middle"), steps=3)
    blurred = wanted.model_copy(update={"mask_blur": 4.0})
    original = np.asarray(read("inputs/job/init.png"))
    kept = np.asarray(read("inputs/job/middle.png"))[..., 0] == 0
    (sharp,) = stepper.run(job(wanted, "sharp")).images
    assert np.array_equal(np.asarray(sharp)[kept], original[kept])
    assert np.abs(np.asarray(sharp)[~kept].astype(int) - original[~kept]).mean() > 5
    (soft,) = stepper.run(job(blurred, "soft")).images
    corner = np.s_[:4, :4]
    assert np.array_equal(np.asarray(soft)[corner], original[corner])
    assert not np.array_equal(np.asarray(soft)[kept], original[kept])


def test_a_nine_channel_model_paints_without_a_picture_too(stepper: Stepper) -> None:
    """Everything is repainted then; with a picture and no mask it starts from that."""
    free = stepper.run(job(request(model="nine"), "free"))
    stepper.run(job(request(model="nine", init_image=uploads("init"), strength=0.5), "started"))
    assert free.images
    assert stepper.difference("free", "started") > MATTERS


EACH_STEP = re.compile(
    r"(unet|controlnet \w+)"
    r"(?!.*\.(time_embedding|add_embedding|controlnet_cond_embedding)(\.|$))"
    r"(?!.*\.attn2\.to_[kv]$)"
)
"""What may run at every step: not the modules of the text, the picture, the time or the map."""
# Windows open and close at whole steps of both runs: each change of a batch joins it anew.
WAYS = {
    "everything at once": request(
        **TWO,
        ip_scale=(0.5, 1.0),
        ip_start=0.25,
        ip_end=0.875,
        ip_target="style",
        image_mask=uploads("left", "right"),
        negative_image=uploads(5),
        init_image=uploads("init"),
        mask_image=uploads("middle"),
        mask_blur=2,
        strength=1.0,
        lora=("pencil:0.5", "clay:1.2"),
        control={"image": ["map", "map2", "map"], "type": ("outline", "edges", "sketch")},
        prompt="a (red:1.3) star",
        negative_prompt="blue",
        guidance_start=0.25,
        guidance_end=0.75,
    ),
    "nine channels": request(
        model="nine", init_image=uploads("init"), mask_image=uploads("middle"), strength=1.0
    ),
    "a long prompt with a LoRA": request(prompt="a red star " * 40, lora=("pencil:1",)),
}


@pytest.mark.parametrize("wanted", WAYS.values(), ids=WAYS.keys())
def test_nothing_that_does_not_depend_on_the_step_is_done_at_a_step(
    stepper: Stepper, wanted: GenerateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the steps run the bodies of UNet and ControlNets more often, and nothing else.

    Nor are the conditions of a batch joined more often.
    """
    model = stepper.engine.models[wanted.model]
    networks: dict[str, torch.nn.Module] = {
        "unet": model.unet,
        "vae": model.pipe.vae,
        "text encoder": model.pipe.text_encoder,
        "text encoder 2": model.pipe.text_encoder_2,
        **{f"controlnet {name}": net.model for name, net in model.controlnets.items()},
        **{f"T2I-Adapter {name}": net.model for name, net in model.t2i_adapters.items()},
        **{f"image encoder {name}": one.encoder.model for name, one in model.adapters.items()},
        **{f"projection {name}": one.projection for name, one in model.adapters.items()},
    }
    for name, adapter in model.adapters.items():
        for number, pair in enumerate(adapter.weights):
            networks[f"K' V' {name} {number}"] = torch.nn.ModuleList(pair)
    counts: Counter[str] = Counter()

    def count(name: str) -> Callable[..., None]:
        return lambda *_arguments: counts.update([name])

    def join(parts: Sequence[torch.Tensor]) -> Context:
        counts["texts joined"] += 1
        return stack_texts(parts)

    for way in (texts, control_maps):
        monkeypatch.setattr(way, "stack_texts", join)
    hooks = [
        module.register_forward_hook(count(f"{network}.{name}"))
        for network, whole in networks.items()
        for name, module in whole.named_modules()
    ]
    by_steps = []
    for steps in (8, 8, 16):  # the first one fills the caches
        counts.clear()
        stepper.run(job(wanted.model_copy(update={"steps": steps})))
        by_steps.append(dict(counts))
    for hook in hooks:
        hook.remove()
    _, few, many = by_steps
    more_often = {name for name in many if many[name] != few.get(name)}
    assert many["unet.conv_in"] > few["unet.conv_in"] > 0
    assert {name for name in more_often if not EACH_STEP.match(name)} == set()


PLAIN = request(steps=5, images=2)
CHANGES = {
    "the start of guidance": {"guidance_start": 0.5},
    "the start of the image prompt": {"ip_start": 0.5},
    "the end of the image prompt": {"ip_end": 0.5},
    "style": {"ip_target": IpTarget.STYLE},
    "layout": {"ip_target": IpTarget.LAYOUT},
    "a negative image": {"negative_image": uploads(5)},
    "an image's adapter": {"image_adapter": ("base", "plus")},
    "masks": {"image_mask": uploads("left", "middle")},
    "the picture to start from": {"init_image": uploads("init"), "strength": 0.6},
    "its mask": {"init_image": uploads("init"), "mask_image": uploads("middle")},
    "a T2I-Adapter": {"control_image": uploads("map"), "control_type": ("sketch",)},
    "a LoRA": {"lora": ("pencil:0.8",)},
    "its scale": {"lora": ("pencil:0.4",)},
    "clip_skip": {"prompt": "a star", "clip_skip": 1},
}


def test_every_way_to_steer_matters(stepper: Stepper) -> None:
    """Each changes the picture by far more than the tolerance of the comparisons."""
    stepper.run(job(PLAIN, "plain"))
    for name, change in CHANGES.items():
        stepper.run(job(PLAIN.model_copy(update=change), name))
    for name in CHANGES:
        assert stepper.difference("plain", name) > 1e-3, name
    assert stepper.difference("a LoRA", "its scale") > 1e-3
    stepper.run(job(PLAIN.model_copy(update={"prompt": "a star"}), "text"))
    assert stepper.difference("text", "clip_skip") > 1e-3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora": ("unknown",)}, "lora"),
        ({"image_adapter": ("unknown",)}, "image_adapter"),
        ({"control_image": uploads("map"), "control_type": ("unknown",)}, "control_type"),
        ({"clip_skip": 4}, "clip_skip"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    stepper: Stepper, changes: dict[str, object], named: str
) -> None:
    wanted = request().model_copy(update=changes)
    assert not stepper.engine.serves(wanted)
    with pytest.raises(UnservableRequest, match=f"`{named}`"):
        stepper.run(job(wanted))


def test_a_lora_that_does_not_fit_is_found_at_start_up(rich: Catalog, tmp_path: Path) -> None:
    """With its own name and the network's."""
    entry = rich.models["tiny"]
    tensors = {
        "unet.down_blocks.0.attentions.7.proj_in.lora_A.weight": torch.zeros(2, 16),
        "unet.down_blocks.0.attentions.7.proj_in.lora_B.weight": torch.zeros(16, 2),
    }
    save_file(tensors, tmp_path / "other.safetensors")
    loras = {"other": Lora(path=tmp_path, weight_name="other.safetensors")}
    changed = entry.model_copy(update={"loras": loras})
    with pytest.raises(ConfigurationError, match=r"other\.safetensors .*unet has no such layer"):
        load_engine(
            rich.model_copy(update={"models": {"tiny": changed}}), Options(), device=Device.CPU
        )


def test_a_fused_lora_is_always_in_force(rich: Catalog, stepper: Stepper) -> None:
    """A model with it fused gives what another gives with it asked for."""
    entry = rich.models["tiny"]
    pencil = entry.loras["pencil"]
    fused = FusedLora(path=pencil.path, weight_name=pencil.weight_name, scale=0.8)
    changed = entry.model_copy(update={"loras": {}, "fused_loras": (fused,)})
    engine = load_engine(
        rich.model_copy(update={"models": {"tiny": changed}}),
        Options(threads=1),
        device=Device.CPU,
    )
    try:
        always = Stepper(engine)
        always.run(job(request(prompt="a star")))
        stepper.run(job(request(prompt="a star", lora=("pencil:0.8",))))
        assert np.abs(always.decoded("job") - stepper.decoded("job")).max() <= 1e-4
    finally:
        engine.stop()
