"""Pickled weights become .safetensors without running what a pickle may hold."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from service.core.errors import ConfigurationError
from tests.running import ROOT
from workers.convert import convert


def test_an_adapter_is_converted_with_the_names_of_public_files(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    content = {
        "image_proj": {"proj.weight": torch.ones(2, 3), "norm.weight": shared},
        "ip_adapter": {"1.to_k_ip.weight": shared[:2]},
    }
    torch.save(content, tmp_path / "ip-adapter.bin")
    command = [sys.executable, "-m", "workers.convert", str(tmp_path / "ip-adapter.bin")]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ}
    )
    target = tmp_path / "ip-adapter.safetensors"
    assert (run.returncode, run.stdout) == (0, f"{target}\n"), run.stderr
    made = load_file(target)
    assert sorted(made) == [
        "image_proj.norm.weight",
        "image_proj.proj.weight",
        "ip_adapter.1.to_k_ip.weight",
    ]
    assert torch.equal(made["ip_adapter.1.to_k_ip.weight"], shared[:2])
    with pytest.raises(ConfigurationError, match="exists already"):
        convert(tmp_path / "ip-adapter.bin")


def test_a_checkpoint_of_a_trainer_gives_its_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a.weight": torch.ones(1)}, "epoch": 3}, tmp_path / "model.ckpt")
    assert list(load_file(convert(tmp_path / "model.ckpt"))) == ["a.weight"]


class Harmful:
    """Leaves a mark where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_runs_code_is_refused_and_does_not(tmp_path: Path) -> None:
    torch.save({"a": Harmful(tmp_path / "mark")}, tmp_path / "bad.bin")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Harmful(tmp_path / "mark")))
    (tmp_path / "cut.bin").write_bytes((tmp_path / "bad.bin").read_bytes()[:50])
    (tmp_path / "empty.bin").touch()
    torch.save({"epoch": 3}, tmp_path / "none.bin")
    for name in ("bad", "plain", "cut", "empty", "none", "missing"):
        with pytest.raises(ConfigurationError, match=f"{name}.bin"):
            convert(tmp_path / f"{name}.bin")
    assert not (tmp_path / "mark").exists()
    assert list(tmp_path.glob("*.safetensors")) == []
