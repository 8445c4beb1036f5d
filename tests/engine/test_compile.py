"""Compiled networks, with a backend that needs no compiler: nothing is compiled while serving."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.engine.conftest import Counts, Stepper, job, request
from tests.requests import changed
from workers.engine.api import Options
from workers.engine.attention import Context
from workers.engine.compile import CompiledNetworks
from workers.engine.engine import Engine
from workers.engine.models.base import Model
from workers.engine.models.sdxl import SDXL


class Recompiles(Counts):
    """Counts what should not happen."""

    def __init__(self) -> None:
        super().__init__()
        self.recompiles = 0

    def on_recompile(self) -> None:
        self.recompiles += 1


class Traces:
    """A backend that runs each graph as it was traced, and counts graphs and runs."""

    def __init__(self) -> None:
        self.graphs = 0
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, _examples: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1

        def run(*arguments: Any) -> Any:
            self.runs += 1
            return graph.forward(*arguments)

        return run


class Thin(SDXL):
    """A UNet of two convolutions, for what does not depend on what is compiled."""

    def predict(
        self,
        sample: Tensor,
        emb: Tensor,
        context: Context,
        residuals: Sequence[Tensor] | None,
        features: Sequence[Tensor] | None,
    ) -> Tensor:
        assert residuals is features is None
        image = sum(image.kv.mean() + image.scale.mean() for image in context.images)
        seen = emb.mean() + context.text.mean() + image
        prediction: Tensor = self.unet.conv_out(self.unet.conv_in(sample)) + seen
        return prediction


@pytest.fixture(scope="module")
def thin(loaded: Engine) -> Model:
    """The tiny model with that UNet and without ControlNets: it is traced in no time."""
    model = loaded.models["tiny"]
    parts = {one.name: getattr(model, one.name) for one in fields(model)}
    entry = model.entry.model_copy(update={"controlnets": {}})
    return Thin(**{**parts, "controlnets": {}, "entry": entry})


@pytest.fixture(scope="module")
def compiled(loaded: Engine) -> Iterator[tuple[Stepper, Recompiles, Traces]]:
    """An engine over the same models whose networks are compiled for four entries."""
    recompiles, traces = Recompiles(), Traces()
    networks = partial(CompiledNetworks, on_recompile=recompiles.on_recompile, backend=traces)
    cpu = torch.device("cpu")
    options = Options(slots=2, threads=1, observer=recompiles)
    engine = Engine(loaded.models, "tiny", options, device=cpu, networks=networks)
    with torch.inference_mode():
        engine.networks["tiny"].prepare(8, 8, [4])
    engine.networks["tiny"].seal()
    yield Stepper(engine, recompiles), recompiles, traces
    engine.stop()


def test_a_mixed_load_compiles_nothing_and_equals_uncompiled_jobs(
    compiled: tuple[Stepper, Recompiles, Traces], stepper: Stepper
) -> None:
    """Adapters, numbers of images, weights, control, guidance, samplers and batch sizes vary."""
    fast, recompiles, traces = compiled
    assert traces.graphs > 0
    before = traces.graphs
    second = request(images=2).images[1].model_copy(update={"weight": 0.5})
    mixed = [
        request(seed=1),
        request(seed=2, adapter="plus", images=3, scheduler="euler"),
        request(seed=3, control={}, scheduler="dpmpp_2m"),
        request(seed=4, guidance_scale=1.0, scheduler="lcm", prompt="a red star"),
        request(seed=5, num_images=3, scheduler="unipc", guidance_end=0.5),
        request(seed=6, control={"start": 0.5}, guidance_scale=1.0),
        request(seed=7, width=96, height=96),
        changed(request(seed=8), images=(request().images[0], second)),
    ]
    fast.together(*(job(wanted, f"compiled-{i}") for i, wanted in enumerate(mixed)))
    assert traces.graphs == before
    assert recompiles.recompiles == 0
    for index, wanted in enumerate(mixed):
        stepper.run(job(wanted, "plain"))
        difference = np.abs(fast.decoded(f"compiled-{index}") - stepper.decoded("plain")).max()
        assert difference <= 1e-4, f"job {index}"


def test_a_deterministic_job_runs_nothing_compiled(
    compiled: tuple[Stepper, Recompiles, Traces],
) -> None:
    """A compiler, too, chooses kernels by timing; other jobs of that size run compiled."""
    fast, recompiles, traces = compiled
    recompiled, runs = recompiles.recompiles, traces.runs
    assert fast.run(job(request(deterministic=True))).max_batch == 2
    assert traces.runs == runs
    fast.run(job(request()))
    assert traces.runs == runs + 4
    assert recompiles.recompiles == recompiled


def test_a_compilation_while_serving_is_counted(thin: Model) -> None:
    """The metric shows shapes that warm-up left out."""
    recompiles = Recompiles()
    networks = CompiledNetworks(thin, on_recompile=recompiles.on_recompile, backend=Traces())
    with torch.inference_mode():
        networks.prepare(8, 8, [4])
        networks.seal()
        assert recompiles.recompiles == 0
        networks.prepare(8, 8, [2])
    assert recompiles.recompiles > 0


def test_where_the_compiler_fails_the_model_runs_uncompiled(
    thin: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """One log line says so."""

    def broken(_graph: torch.fx.GraphModule, _examples: list[Tensor]) -> Callable[..., Any]:
        raise RuntimeError("no compiler")

    networks = CompiledNetworks(thin, on_recompile=lambda: None, backend=broken)
    with torch.inference_mode():
        networks.prepare(8, 8, [2])
    assert networks.padded(1, 8, 8) == 1
    assert sum("uncompiled" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("while_compiling", [True, False])
def test_what_does_not_fit_compiled_lowers_the_cap_only(
    thin: Model,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    while_compiling: bool,
) -> None:
    """Out of memory above two entries at warm-up: the worker starts, and runs two at a time."""

    def full(*_arguments: Any) -> Any:
        raise torch.OutOfMemoryError

    def small(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        shapes = [one.shape for one in examples if isinstance(one, Tensor)]
        if not any(shape[1:] == (4, 8, 8) and shape[0] > 2 for shape in shapes):
            return graph.forward
        return full() if while_compiling else full

    monkeypatch.setattr("workers.engine.engine.choose_cap", max)
    observer = Recompiles()
    tight = Engine(
        {"tiny": thin},
        "tiny",
        Options(slots=2, threads=1, observer=observer),
        device=torch.device("cpu"),
        networks=partial(CompiledNetworks, on_recompile=observer.on_recompile, backend=small),
    )
    try:
        tight.warm_up()
        assert tight.caps.of(("tiny", 64, 64, "")) == 2
        assert tight.networks["tiny"].padded(1, 8, 8) == 1
        for ticket in [tight.submit(job(request(seed=seed))) for seed in range(2)]:
            ticket.result(60)
        assert (observer.recompiles, observer.out_of_memory) == (0, 0)
        assert sum("does not fit" in record.message for record in caplog.records) == 1
    finally:
        tight.stop()


def test_a_device_lost_while_compiling_is_reported(thin: Model) -> None:
    """It is no reason to go on uncompiled."""

    def lost(_graph: torch.fx.GraphModule, _examples: list[Tensor]) -> Callable[..., Any]:
        raise torch.AcceleratorError("unspecified launch failure")

    networks = CompiledNetworks(thin, on_recompile=lambda: None, backend=lost)
    with torch.inference_mode(), pytest.raises(Exception, match="unspecified launch failure"):
        networks.prepare(8, 8, [2])
