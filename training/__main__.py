"""Train the bundled model: every stage in order, then the export. `python -m training`.

Each stage runs in a process of its own, shows its progress, leaves checkpoints and a loss curve in
`--out`, and goes on from them when this is started again. A stage whose minutes are used up ends at
once. `--share 0.1` gives each stage a tenth of its minutes, for a trial.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

#: Stage, further arguments, minutes on two free cores.
RECIPE: Final = (
    ("vae", (), 40.0),
    ("clip", (), 24.0),
    ("vision", (), 90.0),
    ("unet", (), 130.0),
    ("adapter", (), 20.0),
    ("adapter", ("--plus",), 24.0),
    ("controlnet", (), 24.0),
    ("controlnet", ("--kind", "area"), 16.0),
    ("t2i", (), 26.0),
    ("style", ("--look", "dots"), 10.0),
    ("style", ("--look", "hollow"), 16.0),
    ("lcm", (), 60.0),
)
#: One thread a process. Freed memory stays with the process: the pages of large tensors would be
#: mapped anew at every operation, a fifth of a step's time.
ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}


def command(module: str, arguments: list[str], processes: int) -> list[str]:
    """Return how a stage is started, alone or as several processes that train together."""
    if processes == 1:
        return [sys.executable, "-m", f"training.{module}", *arguments]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, "--nproc-per-node", str(processes), "-m", f"training.{module}", *arguments]


def main() -> None:
    """Run the recipe; a stage that fails ends it with its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("work"), help="checkpoints and curves")
    parser.add_argument("--directory", type=Path, default=Path("models/shapes"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--share", type=float, default=1.0, help="of each stage's minutes")
    parser.add_argument("--from", dest="first", default="vae", help="the stage to begin with")
    given = parser.parse_args()
    names = [stage for stage, _, _ in RECIPE]
    environment = {**os.environ, **ENVIRONMENT}
    for stage, further, minutes in RECIPE[names.index(given.first) :]:
        arguments = [*further, "--minutes", f"{minutes * given.share:g}", "--out", str(given.out)]
        print(f"== {stage} {' '.join(further)}", flush=True)
        whole = command(stage, arguments, given.processes)
        subprocess.run(whole, check=True, env=environment)  # noqa: S603  our own stages
    export = ["--out", str(given.out), "--directory", str(given.directory)]
    whole = command("export", export, 1)
    subprocess.run(whole, check=True, env=environment)  # noqa: S603


if __name__ == "__main__":
    main()
