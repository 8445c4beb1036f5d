"""The bundled weights come back as checkpoints, and a stage goes on from there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from training import export, restore
from training.loop import Budget, Loop

BUNDLED = Path(__file__).parents[2] / "models" / "shapes"


# diffusers itself calls transformers' and torch's deprecated names.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_is_restored_is_exported_as_it_was(tmp_path: Path) -> None:
    restore.restore(BUNDLED, tmp_path / "work")
    again = export.export(tmp_path / "work", tmp_path / "again")
    files = [path.relative_to(BUNDLED) for path in BUNDLED.rglob("*.safetensors")]
    assert len(files) == 13
    for file in files:
        before, after = load_file(BUNDLED / file), load_file(again / file)
        assert before.keys() == after.keys()
        for key, weight in before.items():
            assert torch.allclose(after[key].float(), weight.float(), atol=2e-3), (file, key)
    history = (again / "training.json").read_text()
    assert json.loads(history) == json.loads((BUNDLED / "training.json").read_text())


def test_a_restored_stage_warms_up_again(tmp_path: Path) -> None:
    model = nn.Linear(4, 1, bias=False)
    past = {"steps": 100.0, "minutes": 1.0, "loss": 0.5}
    restore.keep(model, past, tmp_path / "linear.pt")
    loop = Loop("linear", model, Budget(1.01, 1.0, warmup_steps=10_000, ema=0.9), tmp_path)
    assert (loop.step, loop.seconds) == (100, 60)
    seen = []

    def loss(_: int) -> torch.Tensor:
        seen.append(model.weight.detach().clone())
        return model.weight.square().sum()

    loop.run(loss)
    # Adam's first step is the learning rate: a ten-thousandth of the whole at most.
    moved = (seen[1] - seen[0]).abs().max().item()
    assert 0 < moved < 1.01e-4
