"""What goes wrong with one job or with the device costs as few jobs as it can."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from service.core.errors import EngineFault, NotFinite, OutOfMemory
from tests.engine.conftest import Counts, Gate, Rows, Steps, job, request, together
from workers.engine.api import EngineDied, Options
from workers.engine.engine import Engine
from workers.engine.networks import Networks
from workers.engine.previews import Previews
from workers.engine.rows import Row


@pytest.fixture
def networks(engine: Engine) -> Iterator[Networks]:
    """The seam at which tests make the device fail; it is mended after the test."""
    batcher = engine._batchers["tiny"]
    whole = batcher._networks
    batcher._networks = Networks(engine.models["tiny"])
    yield batcher._networks
    batcher._networks = whole
    engine._caps._lowered.clear()


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


@pytest.mark.parametrize("method", ["scale_model_input", "step"])
def test_a_sampler_that_fails_ends_its_own_job_only(
    engine: Engine, rows: Rows, method: str
) -> None:
    """The rows it shared the forward with take their step."""

    def broken(*_arguments: object, **_more: object) -> Tensor:
        raise RuntimeError("a bug in a sampler")

    def spoil() -> None:
        (row,) = rows.of("sick")
        setattr(row.scheduler, method, broken)

    heard = Steps(2, spoil)
    with Gate(engine) as gate:
        tickets = [engine.submit(job(request(seed=seed), f"{seed}")) for seed in range(2)]
        sick = engine.submit(job(request(seed=2), "sick"), heard)
        gate.wait_for(3)
    with pytest.raises(EngineFault):
        sick.result(60)
    assert heard.heard[-1] == (2, 4)
    for seed, ticket in enumerate(tickets):
        assert ticket.result(60).max_batch == 6
        engine.submit(job(request(seed=seed), "alone")).result(60)
        assert np.abs(rows.decoded("alone") - rows.decoded(f"{seed}")).max() <= 1e-4


def test_a_preview_that_fails_ends_its_own_job_only(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with samplers."""
    draw = Previews._draw

    def broken(self: Previews, row: Row, *rest: Tensor) -> Image.Image:
        if row.work.job.id == "sick":
            raise RuntimeError("a bug in previews")
        return draw(self, row, *rest)

    monkeypatch.setattr(Previews, "_draw", broken)
    previews = Previews(1)
    previews.learn("tiny", torch.zeros(5, 3))
    monkeypatch.setattr(engine._stepper, "_previews", previews)
    with Gate(engine) as gate:
        sick = engine.submit(job(request(), "sick"))
        well = engine.submit(job(request(), "well"))
        gate.wait_for(2)
    with pytest.raises(EngineFault):
        sick.result(60)
    assert well.result(60).max_batch == 4


def test_a_listener_that_fails_hurts_nobody(engine: Engine) -> None:
    """Its job ends well all the same."""

    def fail() -> None:
        raise RuntimeError("a bug in the worker")

    assert engine.submit(job(request()), Steps(2, fail)).result(60).images


def lost(*_arguments: object) -> Any:
    """What any use of a lost device comes to."""
    raise torch.AcceleratorError("unspecified launch failure")


LOSSES: dict[str, Callable[[Engine], None]] = {
    "admission": lambda engine: setattr(engine._admission, "rows_of", lost),
    "step": lambda engine: setattr(engine._batchers["tiny"]._networks, "denoise", lost),
    "decode": lambda engine: setattr(engine._decoder, "decode", lost),
    "pixels": lambda engine: setattr(engine._decoder, "decode", lambda *_: lost),
}


@pytest.mark.parametrize("place", LOSSES)
def test_a_lost_device_leaves_nobody_waiting(engine: Engine, place: str) -> None:
    """The jobs in hand end with an error that is tried again elsewhere; later ones do not begin."""
    doomed = Engine(engine.models, "tiny", Options(threads=1), device=torch.device("cpu"))
    doomed.start()
    LOSSES[place](doomed)
    with pytest.raises(EngineFault) as failure:
        doomed.submit(job(request())).result(60)
    assert failure.value.retryable
    assert not doomed.alive, "before anybody hears of it"
    with pytest.raises(EngineDied):
        doomed.submit(job(request())).result(60)
    doomed.stop()
