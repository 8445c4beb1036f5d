"""The evaluation's own renderer draws what is asked for, and no training sees it."""

import ast
from pathlib import Path

import torch

from training import independent, judge
from training.world import COLOUR_NAMES, HELD_OUT, SHAPES

TRAINING = Path(__file__).parents[2] / "training"
#: What measures a model and trains none.
EVALUATION = {"evaluate", "figures", "paintings", "sheets", "independent"}


def imports(path: Path) -> set[str]:
    """Name the modules of `training` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "training":
            names = [alias.name for alias in node.names]
            inner = node.module.removeprefix("training").removeprefix(".")
            found |= {inner} if inner else set(names)
    return found


def test_no_stage_of_training_imports_the_independent_renderer() -> None:
    files = {path.stem: imports(path) for path in TRAINING.rglob("*.py")}
    assert "independent" in files["paintings"]
    for name in files.keys() - EVALUATION:
        assert not files[name] & EVALUATION, name


def test_no_file_of_the_training_imports_another_in_a_circle() -> None:
    files = {path.stem: imports(path) for path in TRAINING.rglob("*.py")}
    while leaves := {name for name, wanted in files.items() if not wanted & files.keys()}:
        files = {name: wanted for name, wanted in files.items() if name not in leaves}
    assert not files


def test_the_judge_reads_every_variant() -> None:
    chosen = independent.pictures(40, 5)
    wanted = independent.attributes(chosen)
    for variant in independent.VARIANTS:
        if variant.size != 128:
            continue
        verdict = judge.judge(independent.draw(chosen, variant))
        for column, name in ((1, "colour"), (3, "background")):
            share = (getattr(verdict, name) == wanted[:, column]).float().mean()
            assert share > 0.85, (variant.name, name)
        assert (verdict.shape == wanted[:, 0]).float().mean() > 0.9, variant.name


def test_variants_differ_and_are_the_same_each_time() -> None:
    chosen = independent.pictures(4, 6)
    drawn = [independent.draw(chosen, variant) for variant in independent.VARIANTS]
    assert {tuple(d.shape[2:]) for d in drawn} == {(128, 128), (512, 512)}
    again = [independent.draw(chosen, variant) for variant in independent.VARIANTS]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_held_out_pictures_show_held_out_pairs_alone() -> None:
    for held_out in (False, True):
        shown = {
            (COLOUR_NAMES[p.colour], SHAPES[p.shape])
            for p in independent.pictures(300, 7, held_out=held_out)
        }
        assert (shown <= set(HELD_OUT)) is held_out


def test_maps_and_areas_fit_together() -> None:
    chosen = independent.pictures(12, 8)
    area = independent.areas(chosen)
    for line in independent.LINES:
        drawn = independent.outlines(chosen, line)[:, 0]
        assert (drawn.flatten(1).max(1).values > 0.3).all(), line.name
        # A line runs along an area's edge: half of it lies inside.
        inside = (drawn * area).sum() / drawn.sum()
        assert 0.3 < inside < 0.75, line.name
