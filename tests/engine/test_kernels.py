"""Which attention kernel is used on which machine."""

import logging

import pytest
import torch

from service.core.errors import ConfigurationError
from service.core.settings import AttentionBackend, Device
from workers.engine import attention
from workers.engine.attention import choose_kernel
from workers.engine.device import choose_device

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_the_fastest_kernel_that_was_measured_is_used(caplog: pytest.LogCaptureFixture) -> None:
    """And one log line says which it is, with the figures."""
    times = {attention.xformers: 0.002, attention.sdpa: 0.003, attention.cudnn: 0.004}
    with caplog.at_level(logging.INFO):
        chosen = choose_kernel(
            AttentionBackend.AUTO, CUDA, has_xformers=True, measure=times.__getitem__
        )
    assert chosen is attention.xformers
    figures = "(sdpa 3.00 ms, sdpa cudnn 4.00 ms, xformers 2.00 ms)"
    assert f"xformers is the fastest on this machine {figures}" in caplog.text


def test_sdpa_is_used_where_xformers_is_absent(caplog: pytest.LogCaptureFixture) -> None:
    """On CUDA one log line says so; the faster of SDPA's kernels is still found out."""
    times = {attention.sdpa: 0.003, attention.cudnn: 0.001}
    chosen = choose_kernel(
        AttentionBackend.AUTO, CUDA, has_xformers=False, measure=times.__getitem__
    )
    assert chosen is attention.cudnn
    assert [record.message for record in caplog.records] == [
        "attention: xformers is not installed; SDPA is used instead"
    ]


def test_a_cpu_has_sdpa_only(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is logged, for there is no choice."""
    assert choose_kernel(AttentionBackend.AUTO, CPU, has_xformers=True) is attention.sdpa
    assert not caplog.records


def test_an_operator_may_name_the_kernel() -> None:
    """Then nothing is measured."""
    assert choose_kernel(AttentionBackend.SDPA, CUDA, has_xformers=True) is attention.sdpa
    assert choose_kernel(AttentionBackend.XFORMERS, CUDA, has_xformers=True) is attention.xformers


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_is_refused_where_there_is_none() -> None:
    """And `auto` chooses the CPU."""
    assert choose_device(Device.AUTO) == CPU
    with pytest.raises(ConfigurationError, match="IMAGEPROMPT_DEVICE"):
        choose_device(Device.CUDA)
