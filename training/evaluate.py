"""Measure the bundled model: `python -m training.evaluate`, as `make eval` does.

Pictures are judged by their pixels (`training.judge`). Prints a table, writes it to docs/ as
evaluation.md and evaluation.json, and draws the contact sheets there. What has been painted is kept
in work/ under the model's fingerprint, so that a broken run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from training import figures, sheets
from training.cases import NUMBER
from training.painter import GUIDANCE, STEPS
from training.paintings import Paintings, fingerprint


def main() -> None:
    """Evaluate the model folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("models/shapes"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--kept", type=Path, default=Path("work/evaluation"))
    parser.add_argument("--cases", type=int, default=NUMBER)
    given = parser.parse_args()
    paintings = Paintings(given.directory, given.kept, given.cases)
    rows = figures.evaluate(paintings)
    text = figures.table(rows)
    print(text)
    heading = (
        f"Model {fingerprint(given.directory)}, {given.cases} cases a test, DPM-Solver++ "
        f"{STEPS} steps, guidance {GUIDANCE:g}.\n\n"
    )
    (given.docs / "evaluation.md").write_text("# Evaluation\n\n" + heading + text + "\n")
    content = json.dumps([asdict(row) for row in rows], indent=2)
    (given.docs / "evaluation.json").write_text(content + "\n")
    sheets.draw_all(paintings, given.docs)


if __name__ == "__main__":
    main()
