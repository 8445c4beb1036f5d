"""What goes wrong with one job or with the device costs as few jobs as possible."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.core.errors import EngineFault, NotFinite, OutOfMemory
from tests.engine.conftest import Stepper, Steps, job, request
from workers.engine import preview
from workers.engine.api import EngineDied
from workers.engine.compile import Networks
from workers.engine.engine import Engine


@pytest.fixture
def networks(stepper: Stepper) -> Networks:
    """The seam at which tests make the device fail."""
    return stepper.engine.networks["tiny"]


def test_a_row_that_is_not_finite_fails_alone(stepper: Stepper, networks: Networks) -> None:
    """NaN in one job's latents ends that job; the others' pictures are unharmed."""
    clean = networks.denoise

    def poisoned(sample: Tensor, *rest: object, **more: object) -> Tensor:
        output = clean(sample, *rest, **more)
        for row in [each for each in stepper.loop.rows if each.work.job.id == "1"]:
            same = [i for i in range(len(output)) if torch.equal(sample[i], row.model_input()[0])]
            output[same] = torch.nan
        return output

    networks.denoise = poisoned
    tickets = stepper.submit_all(*(job(request(seed=seed), f"{seed}") for seed in range(3)))
    with pytest.raises(NotFinite):
        stepper.finish(tickets[1])
    assert all(result.images for result in stepper.finish(tickets[0], tickets[2]))


def test_out_of_memory_splits_the_batch_and_every_job_succeeds(
    stepper: Stepper, networks: Networks
) -> None:
    """Batches become as small as fit, down to one branch of one row."""
    whole = networks.denoise

    def small(sample: Tensor, *rest: object, **more: object) -> Tensor:
        if len(sample) > 1:
            raise torch.OutOfMemoryError
        return whole(sample, *rest, **more)

    networks.denoise = small
    stepper.together(*(job(request(seed=seed), f"{seed}") for seed in range(3)))
    networks.denoise = whole
    assert stepper.observer.out_of_memory > 0
    assert max(stepper.observer.forwards[1:]) <= 4  # the cap was lowered after the first
    for seed in range(3):
        stepper.run(job(request(seed=seed), "alone"))
        assert stepper.difference("alone", f"{seed}") <= 1e-4


def test_a_job_that_never_fits_fails_and_the_engine_goes_on(
    stepper: Stepper, networks: Networks
) -> None:
    """The error says what happened; the next job runs."""

    def full(*_arguments: object, **_more: object) -> Tensor:
        raise torch.OutOfMemoryError

    whole, networks.denoise = networks.denoise, full
    with pytest.raises(OutOfMemory):
        stepper.run(job(request()))
    networks.denoise = whole
    assert stepper.run(job(request())).images


def test_a_picture_that_does_not_fit_is_decoded_in_tiles(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory in the VAE costs no job; where not even tiles fit, the job fails."""
    vae = stepper.engine.models["tiny"].vae
    size = {"width": 256, "height": 256}
    whole = stepper.run(job(request(**size)))

    def full(*_arguments: object, **_more: object) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(vae, "decode", full)
    tiled = stepper.run(job(request(**size)))
    difference = np.abs(np.asarray(tiled.images[0]) / 255 - np.asarray(whole.images[0]) / 255)
    assert difference.mean() < 0.05  # seams are blended, not equal
    monkeypatch.setattr(vae, "tiled_decode", full)
    with pytest.raises(OutOfMemory):
        stepper.run(job(request(**size)))


def test_a_fault_in_one_jobs_rows_does_not_end_the_others(
    stepper: Stepper, networks: Networks
) -> None:
    """A batch that fails is split until the failing job is alone."""

    def broken(*_arguments: object) -> list[Tensor]:
        raise RuntimeError("a broken ControlNet")

    networks.control = broken
    failing, other = stepper.submit_all(
        job(request(control={}), "failing"), job(request(), "other")
    )
    with pytest.raises(EngineFault):
        stepper.finish(failing)
    assert stepper.finish(other)[0].images


@pytest.mark.parametrize("method", ["scale_model_input", "step"])
def test_a_sampler_that_fails_ends_its_own_job_only(stepper: Stepper, method: str) -> None:
    """The rows it shared the forward with take their step."""

    def broken(*_arguments: object, **_more: object) -> Tensor:
        raise RuntimeError("a bug in a sampler")

    def spoil() -> None:
        (row,) = stepper.rows_of("failing")
        setattr(row.scheduler, method, broken)

    heard = Steps(2, spoil)
    *tickets, failing = stepper.submit_all(
        *(job(request(seed=seed), f"{seed}") for seed in range(2)),
        (job(request(seed=2), "failing"), heard),
    )
    with pytest.raises(EngineFault):
        stepper.finish(failing)
    assert heard.heard[-1] == (2, 4)
    for seed, result in enumerate(stepper.finish(*tickets)):
        assert result.max_batch == 6
        stepper.run(job(request(seed=seed), "alone"))
        assert stepper.difference("alone", f"{seed}") <= 1e-4


def test_a_preview_that_fails_ends_its_own_job_only(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with samplers."""
    stepper = Stepper(make_engine(preview_every_steps=1))
    stepper.loop.previews.learn("tiny", torch.zeros(5, 3))
    draw = preview.without_noise

    def broken(scheduler: Any, *rest: Tensor) -> Tensor:
        if any(row.scheduler is scheduler for row in stepper.rows_of("failing")):
            raise RuntimeError("a bug in previews")
        return draw(scheduler, *rest)

    failing, well = stepper.submit_all(job(request(), "failing"), job(request(), "well"))
    stepper.turn()
    monkeypatch.setattr(preview, "without_noise", broken)
    with pytest.raises(EngineFault):
        stepper.finish(failing)
    assert stepper.finish(well)[0].max_batch == 4


def test_a_listener_that_fails_does_no_harm(stepper: Stepper) -> None:
    """Its job ends well all the same."""

    def fail() -> None:
        raise RuntimeError("a bug in the worker")

    assert stepper.run(job(request()), Steps(2, fail)).images


def lost(*_arguments: object, **_more: object) -> Any:
    """What any use of a lost device raises."""
    raise torch.AcceleratorError("unspecified launch failure")


LOSSES: dict[str, Callable[[Engine], None]] = {
    "preparation": lambda engine: setattr(engine.preparer, "rows_of", lost),
    "step": lambda engine: setattr(engine.networks["tiny"], "denoise", lost),
    "decode": lambda engine: setattr(engine.decoder, "decode", lost),
    "pixels": lambda engine: setattr(engine.decoder, "decode", lambda *_: lost),
}


@pytest.mark.parametrize("where", LOSSES)
def test_a_lost_device_leaves_no_job_waiting(engine: Engine, where: str) -> None:
    """Open jobs end with an error that is retried elsewhere; later ones do not begin."""
    LOSSES[where](engine)
    with pytest.raises(EngineFault) as failure:
        engine.submit(job(request())).result(60)
    assert failure.value.retryable
    assert not engine.alive, "before the tickets end"
    with pytest.raises(EngineDied):
        engine.submit(job(request())).result(60)
