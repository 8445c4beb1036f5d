"""Several processes train one model: the same weights everywhere, each batch seen once."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from service.cli.processes import free_port
from training import distributed
from training.loop import Budget, Loop


def train(out: Path, environment: dict[str, str]) -> None:
    """What each process does."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    loop = Loop("linear", model, Budget(0.005, 1e-2), out)
    seen = []

    def loss(number: int) -> torch.Tensor:
        seen.append(number)
        data = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        return (model(data) - 1).square().mean()

    loop.run(loss)
    joined = distributed.gather(torch.tensor([float(distributed.rank())]))
    report = {"weight": model.weight.tolist(), "seen": seen, "joined": joined.tolist()}
    (out / f"{distributed.rank()}.json").write_text(json.dumps(report))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    # As torchrun sets them; forked, so that neither imports torch again.
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",  # whatever this machine's name leads to
    }
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=train, args=(tmp_path, {**environment, "RANK": str(rank)}))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["weight"] == second["weight"]
    assert first["joined"] == second["joined"] == [0.0, 1.0]
    assert not set(first["seen"]) & set(second["seen"])
    assert len(first["seen"]) == len(second["seen"]) > 0
