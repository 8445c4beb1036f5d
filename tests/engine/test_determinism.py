"""Nothing that a deterministic job runs was chosen by timing: its bytes outlive a restart."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.conftest import Counts, job, request
from workers.engine import attention
from workers.engine.engine import Engine
from workers.engine.layers import CrossAttention, SelfAttention

BY_RULE, BY_TIMING = (False, True), (True, False)
"""cuDNN's (benchmark, deterministic)."""


class Spy:
    """Notes cuDNN's flags at every call of a network, and the calls of the fastest kernel."""

    def __init__(self) -> None:
        self.flags: dict[str, set[tuple[bool, bool]]] = {}
        self.fastest = 0

    def noting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **more: Any) -> Any:
            cudnn = torch.backends.cudnn
            self.flags.setdefault(name, set()).add((cudnn.benchmark, cudnn.deterministic))
            return function(*arguments, **more)

        return called

    def kernel(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Stand for the kernel that was the fastest one."""
        self.fastest += 1
        return attention.plain(query, key, value, bias)


@pytest.fixture
def spy(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    """An engine as on CUDA while cuDNN times its algorithms and a kernel has been chosen."""
    spy, model = Spy(), engine.models["tiny"]
    networks = engine._networks["tiny"]
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(networks, "denoise", spy.noting("unet", networks.denoise))
    monkeypatch.setattr(model.vae, "decode", spy.noting("vae", model.vae.decode))
    encode = spy.noting("text", model.pipe.encode_prompt)
    monkeypatch.setattr(model.pipe, "encode_prompt", encode)
    for net in (model.unet, model.controlnets["outline"].model):
        for layer in net.modules():
            if isinstance(layer, SelfAttention | CrossAttention):
                monkeypatch.setattr(layer, "kernel", spy.kernel)
    yield spy
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == BY_TIMING


def test_a_deterministic_job_runs_by_rule(engine: Engine, spy: Spy) -> None:
    """No algorithm of cuDNN's and no attention kernel is one that was the fastest at start-up."""
    wanted = request(deterministic=True, control={}, prompt="by rule")
    engine.submit(job(wanted)).result(60)
    assert spy.flags == {"text": {BY_RULE}, "unet": {BY_RULE}, "vae": {BY_RULE}}
    assert spy.fastest == 0


def test_another_job_runs_what_is_fastest_but_encodes_by_rule(engine: Engine, spy: Spy) -> None:
    """Its embeddings are cached, and a deterministic job may be served from there."""
    engine.submit(job(request(control={}, prompt="by timing"))).result(60)
    assert spy.flags == {"text": {BY_RULE}, "unet": {BY_TIMING}, "vae": {BY_TIMING}}
    assert spy.fastest > 0


def test_the_measured_cap_does_not_show_in_a_deterministic_job(
    engine: Engine, observer: Counts
) -> None:
    """Its rows make the same batches whatever was measured at start-up."""
    engine.submit(job(request(deterministic=True, num_images=2))).result(60)
    assert set(observer.forwards) == {2}
