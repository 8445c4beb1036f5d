"""What an engine does and knows when it reports ready; previews are fitted then, too."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from service.core.catalog import Catalog
from service.core.settings import Device
from tests.engine.conftest import Counts, Stepper, Steps, job, request
from tests.running import until
from workers.engine import preview, warmup
from workers.engine.api import Canceled, NullObserver, Options, Ticket
from workers.engine.engine import Engine, load_engine


class Watcher(NullObserver):
    """Keeps the previews of a job."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, Image.Image]] = []

    def on_preview(self, step: int, image: Image.Image) -> None:
        self.seen.append((step, image))


def test_a_warm_engine_has_run_every_class_and_knows_its_rate(catalog: Catalog) -> None:
    """Adapters, ControlNets and sizes have each run once; caps and the rate are measured."""
    counts, stages, timed = Counts(), [], []

    def on_stage(stage: str) -> None:
        stages.append(stage)
        timed.append(torch.backends.cudnn.benchmark)

    engine = load_engine(
        catalog,
        Options(
            slots=4,
            threads=1,
            observer=counts,
            preview_every_steps=2,
            on_stage=on_stage,
        ),
        device=Device.CPU,
    )
    try:
        assert engine.row_steps_per_second == 0
        engine.warm_up()
        assert engine.row_steps_per_second > 0
        assert 2 <= engine.caps.of(("tiny", 64, 64, "")) <= 8
        assert len(counts.forwards) == 3 * 2  # base, plus, control: two steps each
        assert stages == [
            "loading tiny: base",
            "loading tiny: adapter base",
            "loading tiny: adapter plus",
            "loading tiny: ControlNet outline",
            "profiling tiny at 64 x 64",
            "preparing tiny at 64 x 64",
            "warming tiny",
        ]
        # cuDNN's algorithms are timed before the first client comes, and never while serving.
        assert timed == [False] * 4 + [True] * 3
        assert not torch.backends.cudnn.benchmark
        watcher = Watcher()
        result = engine.submit(job(request(steps=5, num_images=2)), watcher).result(60)
        assert [step for step, _ in watcher.seen] == [2, 4]
        assert {image.size for _, image in watcher.seen} == {(8, 8)}
        # The preview near the end looks more like the picture than noise does.
        small = np.asarray(result.images[0].resize((8, 8), Image.Resampling.BOX)) / 255
        last = np.asarray(watcher.seen[-1][1]) / 255
        noise = np.random.default_rng(0).random((8, 8, 3))
        assert np.abs(last - small).mean() < np.abs(noise - small).mean()
    finally:
        engine.stop()


def test_a_batch_is_timed_at_as_many_entries_as_it_says(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate of 16 entries was measured on 16."""
    engine, timed = stepper.engine, []
    networks = engine.networks["tiny"]
    denoise = networks.denoise

    def counting(sample: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        timed.append(len(sample))
        return denoise(sample, *rest, **more)

    monkeypatch.setattr(networks, "denoise", counting)
    monkeypatch.setattr(warmup, "GAIN", 0.0)  # larger batches are tried though they do not pay
    profiler = warmup.Profiler(
        "tiny", engine.models["tiny"], engine.batchers["tiny"], engine.preparer
    )
    with torch.inference_mode():
        measured = profiler.seconds((64, 64), 16)
    assert list(measured) == [2, 4, 8, 16]
    assert timed == [entries for entries in measured for _ in range(warmup.REPEATS)]


def test_a_batch_that_was_slowed_by_other_work_is_timed_again(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cap was 8 instead of 32 where something else had the cores at the wrong moment."""
    engine, timed = stepper.engine, []
    clock = itertools.count()
    networks = engine.networks["tiny"]
    denoise = networks.denoise

    def slow(sample: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        timed.append(len(sample))
        slowed = len(sample) == 8 and timed.count(8) <= warmup.REPEATS
        for _ in range(10 if slowed else 1):
            next(clock)
        return denoise(sample, *rest, **more)

    monkeypatch.setattr(networks, "denoise", slow)
    monkeypatch.setattr(warmup, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    profiler = warmup.Profiler(
        "tiny", engine.models["tiny"], engine.batchers["tiny"], engine.preparer
    )
    with torch.inference_mode():
        measured = profiler.seconds((64, 64), 16)
    assert measured == {2: 2, 4: 2, 8: 2, 16: 2}
    assert timed.count(8) == 2 * warmup.REPEATS


def test_a_stopped_engine_accepts_nothing_and_ends_every_job(engine: Engine) -> None:
    """Jobs that are open when it stops end as canceled; stopping twice is allowed."""
    open_jobs: list[Ticket] = []

    def stopped() -> bool:
        return len(open_jobs) == 3 and all(ticket.done for ticket in open_jobs)

    # None of them can end before: the first that takes a step waits for the stop.
    wait = Steps(1, lambda: until(stopped, what="the stop"))
    open_jobs.extend(engine.submit(job(request(seed=seed)), wait) for seed in range(3))
    engine.stop()
    engine.stop()
    for ticket in itertools.chain(open_jobs, [engine.submit(job(request()))]):
        with pytest.raises(Canceled):
            ticket.result(10)
    assert not engine.alive


def test_a_preview_is_fitted_to_real_decodes() -> None:
    """Where colours are a linear map of the latents, the fit finds it."""
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(5, 3, generator=generator) * 0.2
    latents = [torch.rand(1, 4, 6, 8, generator=generator) for _ in range(2)]
    pictures = [
        preview.render(true, each).resize((64, 48), Image.Resampling.NEAREST) for each in latents
    ]
    fitted = preview.fit(latents, pictures)
    assert torch.allclose(fitted, true, atol=0.01)
