"""Several processes train one model: the same weights everywhere, each batch seen once."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from training import distributed
from training.loop import Budget, Loop

out = Path(sys.argv[1])
torch.manual_seed(0)
model = nn.Linear(4, 1)
loop = Loop("linear", model, Budget(0.005, 1e-2), out)
seen = []

def loss(number):
    seen.append(number)
    data = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
    return (model(data) - 1).square().mean()

loop.run(loss)
joined = distributed.gather(torch.tensor([float(distributed.rank())]))
report = {"weight": model.weight.tolist(), "seen": seen, "joined": joined.tolist()}
(out / f"{distributed.rank()}.json").write_text(json.dumps(report))
"""


def test_two_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "127.0.0.1", "--nproc-per-node", "2", str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    environment["GLOO_SOCKET_IFNAME"] = "lo"  # whatever this machine's name leads to
    subprocess.run(command, check=True, env=environment, timeout=240, capture_output=True)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["weight"] == second["weight"]
    assert first["joined"] == second["joined"] == [0.0, 1.0]
    assert not set(first["seen"]) & set(second["seen"])
    assert len(first["seen"]) == len(second["seen"]) > 0
