"""The results of a bench run as a Markdown table, a chart and JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.engine.measures import Results

CONTENDERS = ("plain", "one at a time", "compiled", "engine")


def write(folder: Path, name: str, results: Results, about: Mapping[str, Any]) -> Path:
    """Write `name`.md, .json and .png to `folder`; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"about": dict(about), "units": results.units, "figures": results.figures}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    path = folder / f"{name}.md"
    path.write_text(table(results, about), encoding="utf-8")
    chart(folder / f"{name}.png", results, str(about["subject"]))
    return path


def table(results: Results, about: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [f"- {key}: {value}" for key, value in about.items()]
    lines += [
        "",
        "| measure | unit | plain | one at a time | compiled plain | engine | engine / plain |",
        "|---|---|---|---|---|---|---|",
    ]
    other = []
    for measure, figures in results.figures.items():
        unit = results.units[measure]
        if "engine" not in figures:
            other += [f"- {measure}, {who}: {value:.4g} {unit}" for who, value in figures.items()]
            continue
        cells = [f"{figures[who]:.3g}" if who in figures else "" for who in CONTENDERS]
        lines.append(f"| {measure} | {unit} | {' | '.join(cells)} | {_ratio(figures)} |")
    return "\n".join([*lines, "", *other]) + "\n"


def chart(path: Path, results: Results, title: str) -> None:
    """Draw rates and latencies side by side."""
    import matplotlib as mpl  # noqa: PLC0415 (drawing is the last thing a run does)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (after the backend is chosen)

    figure, panels = plt.subplots(1, 2, figsize=(12, 4.5))
    for panel, unit in zip(panels, ("pictures/s", "s"), strict=True):
        measures = [
            measure
            for measure, figures in results.figures.items()
            if results.units[measure] == unit and "engine" in figures
        ]
        for shift, who in enumerate(CONTENDERS):
            heights = [results.figures[measure].get(who, 0.0) for measure in measures]
            places = [place + 0.2 * (shift - 1.5) for place in range(len(measures))]
            bars = panel.bar(places, heights, width=0.2, label=who)
            panel.bar_label(bars, fmt=lambda value: f"{value:.2g}" if value else "", fontsize=7)
        panel.set_xticks(range(len(measures)), measures, rotation=20, ha="right", fontsize=8)
        panel.set_ylabel(unit)
        panel.legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _ratio(figures: Mapping[str, float]) -> str:
    others = [figures[who] for who in CONTENDERS[:-1] if who in figures]
    return f"{figures['engine'] / others[0]:.2f} x" if others else ""
