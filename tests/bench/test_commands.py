"""The benches that start whole services run at small size, where no figure means anything."""

import json
import re
from pathlib import Path

import pytest

from bench.engine import service, subject
from tests.running import bench


@pytest.mark.slow
def test_the_http_bench_asks_our_api_for_everything(tmp_path: Path) -> None:
    """Without cog and LitServe, which it would have to install."""
    bench("bench.http", "--no-peers", "--seconds", "0.3", "--rounds", "1", "--out", str(tmp_path))
    rows = {row.pop("request"): row for row in json.loads((tmp_path / "http.json").read_text())}
    assert set(rows) == {"poll a job", "poll a known job (304)", "health", "post 300 kB"}
    for row in rows.values():
        assert row["server"] == "imageprompt"
        assert row["refused"] == 0
        assert row["per_second"] > 0
        assert row["per_core"] > 0
        assert 0 < row["p50_seconds"] <= row["p99_seconds"]
    assert "| imageprompt | post 300 kB | 16 |" in (tmp_path / "http.md").read_text()


@pytest.mark.slow
def test_the_bench_of_workers_works_its_jobs_off(tmp_path: Path) -> None:
    small = ("--workers", "1", "--slots", "2", "--waves", "1", "--step-seconds", "0.01")
    bench("bench.workers", *small, "--out", str(tmp_path))
    table = (tmp_path / "workers.md").read_text()
    rows = re.findall(r"^\| (\d) \| ([\d.]+) \| ([\d.]+)% \| [\d.]+ \|$", table, re.MULTILINE)
    assert [row[0] for row in rows] == ["1"]
    assert float(rows[0][1]) > 0
    assert float(rows[0][2]) == 100, "the first is what the others are measured by"


@pytest.mark.slow
def test_the_cost_of_the_service_is_told_apart_from_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEPROMPT_MODELS", "what the bench sets is taken back")
    monkeypatch.setenv("IMAGEPROMPT_COMPILE", "so is this")
    monkeypatch.setenv("IMAGEPROMPT_WORKER_THREADS", "1")
    monkeypatch.setattr(service, "JOBS", 3)
    seconds = service.cost(subject.tiny_size(tmp_path), compiled=False)
    assert 0 < seconds < 60


def test_the_bench_of_uploads_measures_every_kind(tmp_path: Path) -> None:
    small = ("--width", "64", "--height", "48", "--turns", "1")
    bench("bench.uploads", *small, "--out", str(tmp_path))
    table = (tmp_path / "uploads.md").read_text()
    stored = dict(re.findall(r"^\| (\w[\w ,]+) \|.* \| (PNG|JPEG|WEBP) \|", table, re.MULTILINE))
    assert stored["JPEG"] == "JPEG"
    assert stored["HEIC"] == stored["JPEG, turned"] == "PNG"
    assert len(stored) == 8


def test_the_bench_of_a_long_queue_asks_for_everything(tmp_path: Path) -> None:
    bench("bench.waiting", "--waiting", "40", "--rounds", "1", "--out", str(tmp_path))
    table = (tmp_path / "waiting.md").read_text()
    rows = re.findall(r"^\| ([a-z0-9 ]+) \| (\d+\.\d\d) \|$", table, re.MULTILINE)
    assert len(rows) == 5
    assert all(float(ratio) > 0 for _, ratio in rows)
