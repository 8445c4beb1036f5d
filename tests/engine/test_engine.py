"""A job in the engine gives what the plain diffusers pipeline gives, alone or in a batch."""

import gc
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from bench.engine.plain import Plain
from service.core.catalog import BlockScales, Catalog
from service.core.params import GenerateRequest
from service.core.settings import Device
from tests.engine.conftest import Stepper, job, read, request
from tests.requests import changed
from tests.running import until
from workers.engine.api import Options
from workers.engine.engine import Engine, load_engine

SAME_AS_PLAIN = 1e-3
SAME_IN_A_BATCH = 1e-4
WINDOW = {"scale": 0.8, "start": 0.2, "end": 0.7}

CASES = {
    **{name: request(scheduler=name) for name in ("ddim", "euler", "dpmpp_2m", "unipc", "lcm")},
    "plus": request(adapter="plus"),
    "three images": request(images=3),
    "plus, three images, euler": request(images=3, adapter="plus", scheduler="euler"),
    "text": request(prompt="a red star", negative_prompt="blue", ip_scale=0.5),
    "guidance off": request(guidance_scale=1.0, prompt="a red star"),
    "control": request(control={}),
    "control in a window, plus": request(control=WINDOW, adapter="plus", steps=6),
    "control, guidance off, unipc": request(control=WINDOW, guidance_scale=0.5, scheduler="unipc"),
    "lambda zero": request(ip_scale=0.0),
    "several pictures, lcm": request(num_images=3, scheduler="lcm"),
    "another size": request(width=96, height=72),
}


@pytest.mark.parametrize("wanted", CASES.values(), ids=CASES.keys())
def test_a_job_alone_equals_the_plain_pipeline(
    stepper: Stepper, plain: Plain, wanted: GenerateRequest
) -> None:
    """The same request with the same seed gives the same pixels as diffusers itself."""
    theirs = plain.pictures(wanted, read)
    result = stepper.run(job(wanted))
    ours = stepper.decoded("job")
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= SAME_AS_PLAIN
    # The picture that is handed out is this one, rounded to 8 bits.
    assert np.abs(np.stack(result.images) / 255 - ours).max() <= 0.5 / 255 + 1e-5


def test_an_engine_serves_what_it_has_loaded(loaded: Engine) -> None:
    served = request(adapter="plus", control={})
    assert loaded.serves(served)
    for change in (
        {"model": "new"},
        {"adapter": "new"},
        {"control_type": ("new",)},
    ):
        assert not loaded.serves(changed(served, **change))


CHANGES = {
    "the image prompt": {"images": request(images=2).images[1:]},
    "a second image prompt": {"images": request(images=2).images},
    "lambda": {"ip_scale": (0.1,)},
    "the adapter": {"adapter": "plus"},
    "the text": {"prompt": "a red star"},
    "the negative text": {"negative_prompt": "blue"},
    "the control map": {"controls": request(control={}).controls},
    "the guidance": {"guidance_scale": 2.0},
    "the end of guidance": {"guidance_end": 0.5},
    "the seed": {"seed": 8},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_parameter_matters(stepper: Stepper, change: dict[str, object]) -> None:
    """Each condition changes the picture by more than the tolerance of the comparisons."""
    for name, wanted in (("before", request()), ("after", changed(request(), **change))):
        stepper.run(job(wanted, name))
    difference = np.abs(stepper.decoded("before") - stepper.decoded("after")).max()
    assert difference > 10 * SAME_AS_PLAIN


def test_an_ended_job_is_freed_at_once(engine: Engine) -> None:
    """Tensors and pictures do not pile up until the garbage collector runs."""
    gc.disable()
    try:
        done, dropped = (engine.submit(job(request(steps=steps))) for steps in (2, 50))
        done.result(60)
        dropped.cancel()
        kept = [weakref.ref(ticket) for ticket in (done, dropped)]
        del done, dropped
        until(lambda: not any(ticket() for ticket in kept), what="the end of the tickets")
    finally:
        gc.enable()


def test_rows_of_a_mixed_batch_equal_the_same_jobs_alone(stepper: Stepper) -> None:
    """Eight jobs that differ in everything share forwards and come out as if alone."""
    mixed = [
        request(seed=1),
        request(seed=2, adapter="plus", images=2, ip_scale=1.2, steps=5),
        request(seed=3, prompt="a blue ring", scheduler="euler"),
        request(seed=4, control=WINDOW, steps=6),
        request(seed=5, guidance_scale=1.0, scheduler="lcm"),
        request(seed=6, adapter="plus", control={"scale": 1.5}, guidance_scale=1.0),
        request(seed=7, images=3, scheduler="dpmpp_2m", guidance_scale=9.0, guidance_end=0.5),
        request(seed=8, negative_prompt="star", scheduler="unipc", ip_scale=0.0, num_images=2),
    ]
    results = stepper.together(*(job(wanted, f"mixed-{i}") for i, wanted in enumerate(mixed)))
    assert max(result.max_batch for result in results) >= 12
    assert max(stepper.observer.forwards) >= 12
    for index, wanted in enumerate(mixed):
        stepper.run(job(wanted, "alone"))
        difference = np.abs(stepper.decoded("alone") - stepper.decoded(f"mixed-{index}")).max()
        assert difference <= SAME_IN_A_BATCH, f"row {index}"


def test_an_adapter_acts_in_the_blocks_that_models_yaml_says(
    catalog: Catalog, plain: Plain
) -> None:
    """Its block scales and a job's lambda multiply, as with diffusers' `set_ip_adapter_scale`."""
    entry = catalog.models["tiny"]
    scales = BlockScales(down={"block_1": 0.5}, up={"block_0": [0, 1.5]})
    plus = entry.adapters["plus"].model_copy(update={"block_scales": scales})
    entry = entry.model_copy(update={"adapters": {**entry.adapters, "plus": plus}})
    changed = catalog.model_copy(update={"models": {"tiny": entry}})
    engine = load_engine(changed, Options(slots=2, threads=1), device=Device.CPU)
    try:
        stepper = Stepper(engine)
        wanted = request(adapter="plus")
        # The other adapter has no block scales and keeps lambda everywhere.
        stepper.together(job(wanted, "plus"), job(request(), "base"))
        same = Plain(entry, torch.device("cpu")).pictures(wanted, read)
        assert np.abs(stepper.decoded("plus") - same).max() <= SAME_AS_PLAIN
        everywhere = plain.pictures(wanted, read)
        assert np.abs(stepper.decoded("plus") - everywhere).max() > 10 * SAME_AS_PLAIN
        base = plain.pictures(request(), read)
        assert np.abs(stepper.decoded("base") - base).max() <= SAME_AS_PLAIN
    finally:
        engine.stop()


def test_equal_image_weights_change_nothing(stepper: Stepper) -> None:
    """Image weights are relative: two of 0.5 are two of 1."""
    wanted = request(images=2)
    halves = tuple(image.model_copy(update={"weight": 0.5}) for image in wanted.images)
    stepper.run(job(wanted, "ones"))
    stepper.run(job(changed(wanted, images=halves), "halves"))
    assert np.array_equal(stepper.decoded("ones"), stepper.decoded("halves"))


def test_an_image_of_weight_zero_is_not_there(stepper: Stepper) -> None:
    """A weight of 0 removes an image prompt; one near 0 comes close to that."""
    both = request(images=2)

    def weighted(weight: float) -> np.ndarray:
        second = both.images[1].model_copy(update={"weight": weight})
        other = changed(both, images=(both.images[0], second))
        stepper.run(job(other, "weighted"))
        return stepper.decoded("weighted")

    stepper.run(job(request(), "first only"))
    alone = stepper.decoded("first only")
    assert np.abs(weighted(0.0) - alone).max() <= SAME_IN_A_BATCH
    assert np.abs(weighted(1e-6) - alone).max() <= SAME_AS_PLAIN
    assert np.abs(weighted(1.0) - alone).max() > 10 * SAME_AS_PLAIN


def test_without_any_image_the_base_model_answers(stepper: Stepper, plain: Plain) -> None:
    """With every image prompt at weight 0 the picture is the plain model's for the text alone."""
    only = request(prompt="a red star")
    nothing = tuple(image.model_copy(update={"weight": 0.0}) for image in only.images)
    stepper.run(job(changed(only, images=nothing), "none"))
    theirs = plain.pictures(only.model_copy(update={"ip_scale": (0.0,)}), read)
    assert np.abs(stepper.decoded("none") - theirs).max() <= SAME_AS_PLAIN


def test_deterministic_jobs_run_alone_and_repeat_their_bytes(stepper: Stepper) -> None:
    """A deterministic job runs in batches of its own, and gives the same bytes each time."""
    fixed = request(deterministic=True)
    others = [request(seed=seed) for seed in range(3)]
    jobs = [job(fixed, "fixed"), *(job(other, f"other-{other.seed}") for other in others)]
    first, *_ = stepper.together(*jobs)
    assert first.max_batch == 2
    again = stepper.run(job(fixed, "again"))
    assert _bytes(first.images[0]) == _bytes(again.images[0])


def _bytes(image: Image.Image) -> bytes:
    return image.tobytes()
