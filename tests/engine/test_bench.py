"""The bench's commands run at small size, where no figure means anything."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench import memory
from bench.__main__ import main
from bench.engine import report, sdxl
from bench.engine.measures import Results
from bench.engine.subject import _catalog
from service.core.catalog import load_catalog
from service.core.settings import Device
from workers.engine.api import Options
from workers.engine.engine import load_engine
from workers.engine.warmup import job


@pytest.mark.slow
def test_the_gpu_bench_runs_at_tiny_size_on_a_cpu(tmp_path: Path) -> None:
    """`python -m bench --gpu --tiny` writes a table, a chart and JSON with every measure."""
    options = ["--gpu", "--tiny", "--threads", "1", "--no-service", "--out", str(tmp_path)]
    main(options)
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["about"]["recompiles while serving"] == 0
    assert {"one job alone", "16 jobs at once", "mixed load, p95 latency"} <= set(
        written["figures"]
    )
    for figures in written["figures"].values():
        assert all(value > 0 for value in figures.values())
    # One measure of each part that only a GPU's bench has.
    assert {"plain", "compiled", "engine"} == set(
        written["figures"]["16 jobs of 3 steps at 64 x 64"]
    )
    assert {
        "8 jobs with a LoRA",
        "VAE decode",
        "a step, compiled by repeated blocks",
        "process start to first picture",
    } <= set(written["figures"])
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")
    assert "| one job alone | s |" in (tmp_path / "gpu.md").read_text()


def test_the_memory_of_jobs_that_use_everything_is_reported(tmp_path: Path) -> None:
    """`python -m bench.memory --tiny` runs every task and writes its figures."""
    memory.main(["--tiny", "--jobs", "10", "--out", str(tmp_path)])
    assert "| 10 | " in (tmp_path / "memory.md").read_text()


def test_the_table_sets_the_engine_against_plain_diffusers() -> None:
    """The last column is the engine's figure over the first contender's."""
    results = Results()
    results.add("8 jobs at once", "pictures/s", {"plain": 2.0, "one at a time": 1.9, "engine": 5.0})
    results.add("inputs", "s", {"cache hit": 0.001})
    table = report.table(results, {"subject": "a test"})
    assert "| 8 jobs at once | pictures/s | 2 | 1.9 |  | 5 | 2.50 x |" in table
    assert "- inputs, cache hit: 0.001 s" in table


def test_the_random_sdxl_loads_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder of the full-size model, with every width cut down, gives pictures."""
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    widths = {"block_out_channels": (32, 64, 64), "attention_head_dim": (1, 2, 2)}
    depth = {"transformer_layers_per_block": (1, 1, 1), "cross_attention_dim": 96}
    added = {"projection_class_embeddings_input_dim": 64 + 6 * 256}
    monkeypatch.setattr(sdxl, "CONTEXT", 96)
    monkeypatch.setattr(sdxl, "UNET", {**sdxl.UNET, **widths, **depth, **added})
    monkeypatch.setattr(sdxl, "VAE", {**sdxl.VAE, "block_out_channels": (32, 32, 32, 32)})
    text = {**sdxl.TEXT, **small, "hidden_size": 32, "projection_dim": 32}
    monkeypatch.setattr(sdxl, "TEXT", text)
    text_2 = {**sdxl.TEXT_2, **small, "hidden_size": 64, "projection_dim": 64}
    monkeypatch.setattr(sdxl, "TEXT_2", text_2)
    vision = {**sdxl.VISION, **small, "hidden_size": 64, "projection_dim": 32}
    monkeypatch.setattr(sdxl, "VISION", vision)
    folder = sdxl.build(tmp_path / "sdxl")
    catalog = load_catalog(_catalog(tmp_path, folder, size=64, warm=()))
    engine = load_engine(catalog, Options(slots=1, threads=1), device=Device.CPU)
    engine.start()
    try:
        model = engine.models["bench"]
        assert model.pipe.tokenizer.model_max_length == 77
        for adapter in ("base", "plus"):
            wanted = job("bench", model, size=(64, 64), adapter=adapter)
            (picture,) = engine.submit(wanted).result(60).images
            assert np.asarray(picture).std() > 1
    finally:
        engine.stop()
