"""Nothing that a deterministic job runs was chosen by timing: its bytes stay after a restart."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.conftest import Stepper, job, request
from workers.engine import attention
from workers.engine.models.layers import CrossAttention, SelfAttention

FIXED, BY_TIMING = (False, True), (True, False)
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
def spy(stepper: Stepper, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    """An engine as on CUDA while cuDNN times its algorithms and a kernel has been chosen."""
    spy, model = Spy(), stepper.engine.models["tiny"]
    networks = stepper.engine.networks["tiny"]
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


def test_a_deterministic_job_runs_deterministically(stepper: Stepper, spy: Spy) -> None:
    """No algorithm of cuDNN's and no attention kernel is one that was the fastest at start-up."""
    wanted = request(deterministic=True, control={}, prompt="fixed")
    stepper.run(job(wanted))
    assert spy.flags == {"text": {FIXED}, "unet": {FIXED}, "vae": {FIXED}}
    assert spy.fastest == 0


def test_another_job_runs_what_is_fastest_but_encodes_deterministically(
    stepper: Stepper, spy: Spy
) -> None:
    """Its embeddings are cached, and a deterministic job may be served from there."""
    stepper.run(job(request(control={}, prompt="by timing")))
    assert spy.flags == {"text": {FIXED}, "unet": {BY_TIMING}, "vae": {BY_TIMING}}
    assert spy.fastest > 0


def test_the_measured_cap_does_not_show_in_a_deterministic_job(stepper: Stepper) -> None:
    """Its rows make the same batches whatever was measured at start-up."""
    stepper.run(job(request(deterministic=True, num_images=2)))
    assert set(stepper.observer.forwards) == {2}
