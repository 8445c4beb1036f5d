"""A job's inputs are read and encoded once, beside the steps, or refused with a reason."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from torch import nn

from service.core.errors import EngineFault, InputLost, UnservableRequest
from tests.engine.conftest import Stepper, job, read, request
from tests.requests import changed
from workers.engine.api import EngineJob, NullObserver
from workers.engine.engine import Engine


def test_nothing_that_does_not_depend_on_the_step_is_done_at_a_step(stepper: Stepper) -> None:
    """Encoders, projections, K, V, K', V', time ids and the map's embedding run once a job."""
    model = stepper.engine.models["tiny"]
    adapter, control = model.adapters["plus"], model.controlnets["outline"]
    stepper.run(job(request(adapter="plus")))  # its unconditional K and V are kept
    once: dict[str, nn.Module] = {
        "text encoder": model.pipe.text_encoder,
        "text encoder 2": model.pipe.text_encoder_2,
        "image encoder": adapter.encoder.model,
        "projection": adapter.projection,
        "map": control.model.controlnet_cond_embedding,
    }
    for number, layer in enumerate(model.layers):
        once[f"to_k {number}"], once[f"to_v {number}"] = layer.to_k, layer.to_v
        once[f"to_k_ip {number}"], once[f"to_v_ip {number}"] = adapter.weights[number]
    for number, layer in enumerate(control.layers):
        once[f"control to_k {number}"], once[f"control to_v {number}"] = layer.to_k, layer.to_v
    for name, net in (("unet", model.unet), ("controlnet", control.model)):
        once[f"{name} time ids"], once[f"{name} time"] = net.add_embedding, net.time_embedding
    counts = dict.fromkeys(once, 0)

    def count(name: str) -> Callable[..., None]:
        def hook(*_arguments: object) -> None:
            counts[name] += 1

        return hook

    hooks = [module.register_forward_hook(count(name)) for name, module in once.items()]
    steps = 0

    def step(*_arguments: object) -> None:
        nonlocal steps
        steps += 1

    hooks.append(model.unet.conv_in.register_forward_hook(step))
    wanted = request(adapter="plus", control={}, steps=9, prompt="never seen before", images=1)
    unseen = wanted.images[0].model_copy(update={"pixels_sha256": "1" * 64})
    wanted = changed(wanted, images=(unseen,))
    stepper.run(job(wanted))
    for hook in hooks:
        hook.remove()
    assert steps == 9
    assert counts == dict.fromkeys(once, 1)


def test_a_repeated_image_prompt_runs_no_encoder_and_reads_no_upload(stepper: Stepper) -> None:
    """The second job with the same picture and text needs neither the upload nor an encoder."""
    stepper.run(job(request(adapter="plus", images=2)))
    runs, lookups = stepper.observer.encoder_runs, len(stepper.observer.lookups)

    def load(_key: str) -> None:
        raise AssertionError("the upload was read")

    again = EngineJob("again", request(adapter="plus", images=2, seed=3), load)
    assert stepper.run(again).image_embedding_cache == "hit"
    assert stepper.observer.encoder_runs == runs
    assert stepper.observer.lookups[lookups:] == ["process", "process"]


def test_an_upload_that_is_lost_fails_its_job_only(stepper: Stepper) -> None:
    """What `read` raises comes out of the ticket."""

    def lost(_key: str) -> None:
        raise InputLost("gone")

    unknown = request().images[0].model_copy(update={"pixels_sha256": "2" * 64})
    wanted = changed(request(), images=(unknown,))
    with pytest.raises(InputLost):
        stepper.run(EngineJob("lost", wanted, lost))

    def broken(_key: str) -> None:
        raise ValueError("a bug in the worker")

    with pytest.raises(EngineFault):
        stepper.run(EngineJob("broken", wanted, broken))


def test_a_slow_upload_does_not_hold_up_other_jobs(engine: Engine) -> None:
    """Inputs are read on threads of their own."""
    arrived = threading.Event()

    def slow(key: str) -> object:
        assert arrived.wait(30)
        return read(key)

    unknown = request().images[0].model_copy(update={"pixels_sha256": "3" * 64})
    waiting = engine.submit(EngineJob("slow", changed(request(), images=(unknown,)), slow))
    assert engine.submit(job(request())).result(60).images
    arrived.set()
    assert waiting.result(60).images


@pytest.mark.parametrize(
    "wanted",
    [
        request(model="other"),
        request(adapter="other"),
        request(control={"type": "other"}),
        request(scheduler="lcm", steps=60),
    ],
    ids=["model", "adapter", "control", "lcm beyond its training"],
)
def test_what_the_model_cannot_do_fails_with_a_reason(stepper: Stepper, wanted: object) -> None:
    """The message names the field."""
    with pytest.raises(UnservableRequest, match="`"):
        stepper.run(job(wanted))


@pytest.mark.parametrize(("side", "most"), [(3000, 1), (300, 2)])
def test_large_pictures_are_decoded_one_at_a_time(stepper: Stepper, side: int, most: int) -> None:
    """Of several jobs, which are gathered by several threads; small ones do not wait."""
    inside, seen, both = 0, [], threading.Event()

    def slow(key: str) -> Image.Image:
        nonlocal inside
        inside += 1
        seen.append(inside)
        if inside == most:
            both.set()
        both.wait(60)
        time.sleep(0.1)  # time in which another would come
        inside -= 1
        return read(key)

    def gather(number: int) -> None:
        (image,) = request(images=1).images
        image = image.model_copy(
            update={
                "pixels_sha256": f"{number}{side}".ljust(64, "0"),
                "width": side,
                "height": side,
            }
        )
        wanted = changed(request(images=1), images=(image,))
        stepper.engine.preparer.gather(
            EngineJob(f"{number}", wanted, slow), stepper.engine.models["tiny"]
        )

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(gather, range(2)))
    assert max(seen) == most


def test_only_the_engines_own_thread_computes_on_several_cores(
    make_engine: Callable[..., Engine],
) -> None:
    """A second team of OpenMP threads in the process would slow every operator of both."""
    seen: dict[str, int] = {}

    def reading(key: str) -> Image.Image:
        seen["inputs"] = torch.get_num_threads()
        return read(key)

    class Watching(NullObserver):
        def on_forward(self, model: str, entries: int) -> None:
            seen["engine"] = torch.get_num_threads()

    engine = make_engine(threads=3, observer=Watching())
    engine.start()
    unknown = request().images[0].model_copy(update={"pixels_sha256": "4" * 64})
    engine.submit(EngineJob("job", changed(request(), images=(unknown,)), reading)).result(60)
    with ThreadPoolExecutor(1) as pool:
        seen["a later thread"] = pool.submit(torch.get_num_threads).result()
    seen["the caller of start"] = torch.get_num_threads()
    assert seen == {"engine": 3, "inputs": 1, "a later thread": 1, "the caller of start": 1}


def test_a_worker_bounds_how_long_openmp_waits_awake_unless_the_operator_does() -> None:
    """It is set before torch, which reads it once."""
    script = """
import os, sys, workers.__main__
assert "torch" not in sys.modules
print(os.environ["GOMP_SPINCOUNT"])
"""
    for given, expected in (({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5")):
        variables = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=variables | given, capture_output=True, check=True)
        assert done.stdout.decode().strip() == expected
