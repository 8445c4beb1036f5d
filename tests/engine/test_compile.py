"""Compiled networks, with a backend that needs no compiler: nothing is compiled while serving."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.engine.conftest import Counts, Rows, job, request, together
from workers.engine import caps
from workers.engine.api import Options
from workers.engine.compile import CompiledNetworks
from workers.engine.engine import Engine


class Recompiles(Counts):
    """Counts what should not happen."""

    def __init__(self) -> None:
        super().__init__()
        self.recompiles = 0

    def on_recompile(self) -> None:
        self.recompiles += 1


class Traces:
    """A backend that runs each graph as it was traced, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _examples: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture(scope="module")
def compiled(
    engine_and_observer: tuple[Engine, Counts],
) -> Iterator[tuple[Engine, Recompiles, Traces]]:
    """An engine over the same models whose networks are compiled for four places."""
    recompiles, traces = Recompiles(), Traces()
    networks = partial(CompiledNetworks, on_recompile=recompiles.on_recompile, backend=traces)
    models = engine_and_observer[0].models
    cpu = torch.device("cpu")
    options = Options(slots=2, threads=1, observer=recompiles)
    engine = Engine(models, "tiny", options, device=cpu, networks=networks)
    engine.start()
    compiled = engine._networks["tiny"]
    engine._stepper.ask(partial(compiled.prepare, 8, 8, [4]))
    compiled.seal()
    yield engine, recompiles, traces
    engine.stop()


def test_a_mixed_load_compiles_nothing_and_equals_uncompiled_jobs(
    compiled: tuple[Engine, Recompiles, Traces], engine: Engine, rows: Rows
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
        request(seed=8).model_copy(update={"images": (request().images[0], second)}),
    ]
    theirs = Rows(fast)
    together(fast, [job(wanted, f"compiled-{i}") for i, wanted in enumerate(mixed)])
    assert traces.graphs == before
    assert recompiles.recompiles == 0
    for index, wanted in enumerate(mixed):
        engine.submit(job(wanted, "plain")).result(60)
        difference = np.abs(theirs.decoded(f"compiled-{index}") - rows.decoded("plain")).max()
        assert difference <= 1e-4, f"job {index}"


def test_a_deterministic_job_runs_nothing_compiled(
    compiled: tuple[Engine, Recompiles, Traces], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler, too, chooses kernels by timing; other jobs of that size run what it made."""
    fast, recompiles, _ = compiled
    networks, calls = fast._networks["tiny"], []
    run = networks._unet

    def counting(*arguments: Any) -> Any:
        calls.append(len(arguments[1]))
        return run(*arguments)

    monkeypatch.setattr(networks, "_unet", counting)
    before = recompiles.recompiles
    result = fast.submit(job(request(deterministic=True))).result(60)
    assert result.max_batch == 2
    assert calls == []
    fast.submit(job(request())).result(60)
    assert calls == [4] * 4
    assert recompiles.recompiles == before


def test_a_compilation_while_serving_is_counted(
    compiled: tuple[Engine, Recompiles, Traces],
) -> None:
    """The metric shows what the set of shapes has missed."""
    fast, recompiles, _ = compiled
    networks = fast._networks["tiny"]
    before = recompiles.recompiles
    networks._counts[8, 8] = (1, 4)
    fast.submit(job(request(guidance_scale=1.0, steps=1))).result(60)
    networks._counts[8, 8] = (4,)
    assert recompiles.recompiles > before


def test_where_the_compiler_fails_the_model_runs_uncompiled(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """One log line says so."""

    def broken(_graph: torch.fx.GraphModule, _examples: list[Tensor]) -> Callable[..., Any]:
        raise RuntimeError("no compiler")

    networks = CompiledNetworks(engine.models["tiny"], on_recompile=lambda: None, backend=broken)
    with torch.inference_mode():
        networks.prepare(8, 8, [2])
    assert networks.padded(1, 8, 8) == 1
    assert sum("uncompiled" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("while_compiling", [True, False])
def test_what_does_not_fit_compiled_lowers_the_cap_only(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    while_compiling: bool,
) -> None:
    """Out of memory above two places at warm-up: the worker starts, and runs two at a time."""

    def full(*_arguments: Any) -> Any:
        raise torch.OutOfMemoryError

    def small(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        shapes = [one.shape for one in examples if isinstance(one, Tensor)]
        if not any(shape[1:] == (4, 8, 8) and shape[0] > 2 for shape in shapes):
            return graph.forward
        return full() if while_compiling else full

    monkeypatch.setattr(caps, "choose", max)
    observer = Recompiles()
    tight = Engine(
        engine.models,
        "tiny",
        Options(slots=2, threads=1, observer=observer),
        device=torch.device("cpu"),
        networks=partial(CompiledNetworks, on_recompile=observer.on_recompile, backend=small),
    )
    try:
        tight.warm_up()
        assert tight._caps.of(("tiny", 64, 64, "")) == 2
        assert tight._networks["tiny"].padded(1, 8, 8) == 1
        together(tight, [job(request(seed=seed), f"{seed}") for seed in range(2)])
        assert (observer.recompiles, observer.out_of_memory) == (0, 0)
        assert sum("does not fit" in record.message for record in caplog.records) == 1
    finally:
        tight.stop()


def test_a_device_lost_while_compiling_is_told(engine: Engine) -> None:
    """It is no reason to go on uncompiled."""

    def lost(_graph: torch.fx.GraphModule, _examples: list[Tensor]) -> Callable[..., Any]:
        raise torch.AcceleratorError("unspecified launch failure")

    networks = CompiledNetworks(engine.models["tiny"], on_recompile=lambda: None, backend=lost)
    with torch.inference_mode(), pytest.raises(Exception, match="unspecified launch failure"):
        networks.prepare(8, 8, [2])
