"""Jobs join, leave, fail and are cancelled between steps without disturbing each other."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.core.errors import (
    EngineFault,
    InputLost,
    NotFinite,
    OutOfMemory,
    UnservableRequest,
)
from tests.engine.conftest import Counts, Gate, Rows, job, picture, request, together
from workers.engine.engine import Engine
from workers.engine.networks import Networks
from workers.engine.silent import Silent
from workers.engine.types import Canceled, EngineJob


class Steps(Silent):
    """A listener that remembers what it heard and does something at a step."""

    def __init__(self, at: int = 0, action: Callable[[], None] = lambda: None) -> None:
        self.heard: list[tuple[int, int]] = []
        self._at = at
        self._action = action

    def on_step(self, step: int, total: int) -> None:
        self.heard.append((step, total))
        if step == self._at:
            self._action()


@pytest.fixture
def networks(engine: Engine) -> Iterator[Networks]:
    """The seam at which tests make the device fail; it is mended after the test."""
    batcher = engine._batchers["tiny"]
    whole = batcher._networks
    batcher._networks = Networks(engine.models["tiny"])
    yield batcher._networks
    batcher._networks = whole
    engine._caps._lowered.clear()


def test_progress_is_told_after_each_step(engine: Engine) -> None:
    """Step by step, up to the last."""
    steps = Steps()
    engine.submit(job(request(num_images=2)), steps).result(60)
    assert steps.heard == [(step, 4) for step in range(1, 5)]


def test_a_canceled_job_takes_no_further_step(engine: Engine, observer: Counts) -> None:
    """Its rows are gone before the next step; the others end well."""
    tickets = []

    def cancel() -> None:
        tickets[0].cancel()

    steps = Steps(3, cancel)
    with Gate(engine) as gate:
        tickets.append(engine.submit(job(request(steps=50, seed=1), "gone"), steps))
        stays = engine.submit(job(request(steps=10, seed=2), "stays"))
        gate.wait_for(2)
    with pytest.raises(Canceled):
        tickets[0].result(60)
    assert stays.result(60).max_batch == 4
    assert steps.heard[-1] == (3, 50)
    assert observer.forwards.count(2) >= 7  # from then on the other job was alone


def test_a_canceled_job_can_be_canceled_again_and_a_finished_one_stays_finished(
    engine: Engine,
) -> None:
    """The first end counts."""
    ticket = engine.submit(job(request()))
    result = ticket.result(60)
    ticket.cancel()
    assert ticket.result(0) is result
    gone = engine.submit(job(request(steps=50)))
    gone.cancel()
    gone.cancel()
    with pytest.raises(Canceled):
        gone.result(0)


def test_a_job_joins_others_on_their_way(engine: Engine, rows: Rows) -> None:
    """A job that comes later shares the steps that are left, and comes out the same."""
    late: list[object] = []
    join = Steps(2, lambda: late.append(engine.submit(job(request(seed=2, steps=6), "late"))))
    first = engine.submit(job(request(seed=1, steps=20), "first"), join).result(60)
    second = late[0].result(60)
    assert first.max_batch == second.max_batch == 4
    for name, seed, steps in (("first", 1, 20), ("late", 2, 6)):
        engine.submit(job(request(seed=seed, steps=steps), "alone")).result(60)
        assert np.abs(rows.decoded(name) - rows.decoded("alone")).max() <= 1e-4


def test_a_short_job_behind_seven_long_ones_waits_for_few_of_their_steps(
    engine: Engine, observer: Counts
) -> None:
    """From its arrival to its end at most four times the places of its run alone are computed."""
    alone = 4 * 2
    marks: list[int] = []
    tickets = []

    def arrive() -> None:
        marks.append(len(observer.forwards))
        ticket = engine.submit(job(request(seed=9, steps=4), "short"), Steps(4, ended))
        tickets.append(ticket)

    def ended() -> None:
        marks.append(len(observer.forwards))

    with Gate(engine) as gate:
        long = [
            engine.submit(
                job(request(seed=seed, steps=50), f"{seed}"),
                Steps(20, arrive) if seed == 0 else None,
            )
            for seed in range(7)
        ]
        gate.wait_for(7)
    for ticket in long:
        ticket.result(60)
    tickets[0].result(60)
    # Its input is read while steps go on; it counts from the step in which it is first there.
    small = [i for i, n in enumerate(observer.forwards) if i >= marks[0] and n == 2]
    places = observer.forwards[small[0] - 1 : marks[1]]
    assert sum(places) <= 4 * alone


def test_a_row_that_is_not_finite_fails_alone(engine: Engine, networks: Networks) -> None:
    """NaN in one job's latents ends that job; the others' pictures are unharmed."""
    clean = networks.denoise
    sick = 7.5  # the guidance scale by which the sick job is known

    def poisoned(sample: Tensor, *rest: object) -> Tensor:
        output = clean(sample, *rest)
        for row in [r for r in engine._stepper._rows if r.conditions.guidance_scale == sick]:
            same = [i for i in range(len(output)) if torch.equal(sample[i], row.model_input()[0])]
            output[same] = torch.nan
        return output

    networks.denoise = poisoned
    wanted = [request(seed=1), request(seed=2, guidance_scale=sick), request(seed=3)]
    with Gate(engine) as gate:
        tickets = [engine.submit(job(each, f"{i}")) for i, each in enumerate(wanted)]
        gate.wait_for(3)
    with pytest.raises(NotFinite):
        tickets[1].result(60)
    for index in (0, 2):
        assert tickets[index].result(60).images


def test_out_of_memory_splits_the_batch_and_everybody_ends_well(
    engine: Engine, networks: Networks, rows: Rows, observer: Counts
) -> None:
    """Batches become as small as fit, down to one side of one row."""
    whole = networks.denoise

    def small(sample: Tensor, *rest: object) -> Tensor:
        if len(sample) > 1:
            raise torch.OutOfMemoryError
        return whole(sample, *rest)

    networks.denoise = small
    together(engine, [job(request(seed=seed), f"{seed}") for seed in range(3)])
    networks.denoise = whole
    assert observer.out_of_memory > 0
    assert max(observer.forwards[1:]) <= 4  # the cap was lowered after the first
    for seed in range(3):
        engine.submit(job(request(seed=seed), "alone")).result(60)
        assert np.abs(rows.decoded("alone") - rows.decoded(f"{seed}")).max() <= 1e-4


def test_a_job_that_never_fits_fails_and_the_engine_lives_on(
    engine: Engine, networks: Networks
) -> None:
    """The error says what happened; the next job runs."""

    def full(*_arguments: object) -> Tensor:
        raise torch.OutOfMemoryError

    whole, networks.denoise = networks.denoise, full
    with pytest.raises(OutOfMemory):
        engine.submit(job(request())).result(60)
    networks.denoise = whole
    assert engine.submit(job(request())).result(60).images
    assert engine.alive


def test_a_picture_that_does_not_fit_is_decoded_in_tiles(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory in the VAE costs no job; where not even tiles fit, the job fails."""
    vae = engine.models["tiny"].vae
    size = {"width": 256, "height": 256}
    whole = engine.submit(job(request(**size))).result(60)

    def full(*_arguments: object, **_more: object) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(vae, "decode", full)
    tiled = engine.submit(job(request(**size))).result(60)
    difference = np.abs(np.asarray(tiled.images[0]) / 255 - np.asarray(whole.images[0]) / 255)
    assert difference.mean() < 0.05  # seams are blended, not equal
    monkeypatch.setattr(vae, "tiled_decode", full)
    with pytest.raises(OutOfMemory):
        engine.submit(job(request(**size))).result(60)


def test_a_fault_in_one_jobs_rows_does_not_end_the_others(
    engine: Engine, networks: Networks
) -> None:
    """A batch that fails is split until the guilty job is alone."""
    whole = networks.control

    def broken(*_arguments: object) -> list[Tensor]:
        raise RuntimeError("a broken ControlNet")

    networks.control = broken
    with Gate(engine) as gate:
        guilty = engine.submit(job(request(control={}), "guilty"))
        innocent = engine.submit(job(request(), "innocent"))
        gate.wait_for(2)
    with pytest.raises(EngineFault):
        guilty.result(60)
    assert innocent.result(60).images
    networks.control = whole


def test_nothing_that_does_not_depend_on_the_step_is_done_at_a_step(engine: Engine) -> None:
    """Encoders, projections, K, V, K', V', time ids and the map's embedding run once a job."""
    model = engine.models["tiny"]
    adapter, control = model.adapters["plus"], model.controlnets["outline"]
    engine.submit(job(request(adapter="plus"))).result(60)  # remembers "no image" for ever
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
    wanted = wanted.model_copy(update={"images": (unseen,)})
    engine.submit(job(wanted)).result(60)
    for hook in hooks:
        hook.remove()
    assert steps == 9
    assert counts == dict.fromkeys(once, 1)


def test_a_repeated_image_prompt_runs_no_encoder_and_reads_no_upload(
    engine: Engine, observer: Counts
) -> None:
    """The second job with the same picture and text needs neither the upload nor an encoder."""
    engine.submit(job(request(adapter="plus", images=2))).result(60)
    observer.__init__()

    def load(_index: int) -> None:
        raise AssertionError("the upload was read")

    again = EngineJob("again", request(adapter="plus", images=2, seed=3), load)
    assert engine.submit(again).result(60).image_embedding_cache == "hit"
    assert observer.encoder_runs == 0
    assert observer.lookups == ["process", "process"]


def test_an_upload_that_is_lost_fails_its_job_only(engine: Engine) -> None:
    """What load_image raises comes out of the ticket."""

    def lost(_index: int) -> None:
        raise InputLost("gone")

    unknown = request().images[0].model_copy(update={"pixels_sha256": "2" * 64})
    wanted = request().model_copy(update={"images": (unknown,)})
    with pytest.raises(InputLost):
        engine.submit(EngineJob("lost", wanted, lost)).result(60)

    def broken(_index: int) -> None:
        raise ValueError("a bug in the worker")

    with pytest.raises(EngineFault):
        engine.submit(EngineJob("broken", wanted, broken)).result(60)


@pytest.mark.parametrize(
    "wanted",
    [
        request(model="other"),
        request(adapter="other"),
        request(control={}).model_copy(
            update={"control": request(control={}).control.model_copy(update={"type": "other"})}
        ),
        request(scheduler="lcm", steps=60),
    ],
    ids=["model", "adapter", "control", "lcm beyond its training"],
)
def test_what_the_model_cannot_do_fails_with_a_reason(engine: Engine, wanted: object) -> None:
    """The message names the field."""
    with pytest.raises(UnservableRequest, match="`"):
        engine.submit(job(wanted)).result(60)


def test_a_listener_that_fails_hurts_nobody(engine: Engine) -> None:
    """Its job ends well all the same."""

    def fail() -> None:
        raise RuntimeError("a bug in the worker")

    assert engine.submit(job(request()), Steps(2, fail)).result(60).images


def test_a_slow_upload_does_not_hold_up_other_jobs(engine: Engine) -> None:
    """Inputs are read on threads of their own."""
    arrived = threading.Event()

    def slow(index: int) -> object:
        assert arrived.wait(30)
        return picture(index)

    unknown = request().images[0].model_copy(update={"pixels_sha256": "3" * 64})
    waiting = engine.submit(
        EngineJob("slow", request().model_copy(update={"images": (unknown,)}), slow)
    )
    assert engine.submit(job(request())).result(60).images
    arrived.set()
    assert waiting.result(60).images


def test_an_engine_says_whether_it_is_busy_and_alive(engine: Engine) -> None:
    """What the worker's health check reads."""
    ticket = engine.submit(job(request(steps=8)))
    assert engine.busy
    ticket.result(60)
    assert not engine.busy
    assert engine.alive


def test_a_step_started_before_the_last_was_looked_at_changes_nothing(
    engine: Engine, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA the engine is one step ahead of what it tells; the pictures are the same."""
    wanted = [request(seed=1), request(seed=2, num_images=2, steps=5), request(seed=3, steps=1)]
    for index, each in enumerate(wanted):
        engine.submit(job(each, f"now-{index}")).result(60)
    monkeypatch.setattr(engine._stepper, "_ahead", 1)
    heard = Steps()
    tickets = [engine.submit(job(each, f"ahead-{i}"), heard) for i, each in enumerate(wanted)]
    for ticket in tickets:
        ticket.result(60)
    assert sorted(heard.heard) == sorted(
        (step, each.steps) for each in wanted for step in range(1, each.steps + 1)
    )
    for index in range(len(wanted)):
        difference = rows.decoded(f"now-{index}") - rows.decoded(f"ahead-{index}")
        assert np.abs(difference).max() <= 1e-4


def test_a_lost_device_leaves_nobody_waiting(engine: Engine) -> None:
    """The jobs in hand end with an error that is tried again elsewhere, and so do later ones."""
    doomed = Engine(engine.models, "tiny", device=torch.device("cpu"), threads=1)
    doomed.start()

    def lost(*_arguments: object) -> Tensor:
        raise torch.AcceleratorError("unspecified launch failure")

    doomed._batchers["tiny"]._networks.denoise = lost
    for _ in range(2):
        with pytest.raises(EngineFault) as failure:
            doomed.submit(job(request())).result(60)
        assert failure.value.retryable
    doomed._stepper._thread.join(10)
    assert not doomed.alive
    doomed.stop()
