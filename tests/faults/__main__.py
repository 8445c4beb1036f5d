"""`python -m tests.faults`: every fault many times; a table in out/faults.md.

Real processes: Redis with AOF, moto's S3 behind a proxy, the API, two workers, the tiny model.
Exit status 1 if a job was lost, wrong or stuck.
"""

import argparse
import tempfile
import time
from pathlib import Path

from tests.faults.kinds import KINDS
from tests.faults.load import Tally
from tests.faults.place import opened


def main() -> int:
    """Run what the command line asks for and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--only", choices=list(KINDS), action="append")
    parser.add_argument("--fsync", choices=["everysec", "always"], default="everysec")
    parser.add_argument("--out", type=Path, default=Path("out/faults.md"))
    options = parser.parse_args()
    rows, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as name, opened(Path(name), options.fsync) as place:
        for kind in options.only or KINDS:
            tally = Tally()
            for _ in range(options.repeat):
                tally += KINDS[kind](place)
                print(f"{kind}: {tally}", flush=True)  # noqa: T201  a report for a person
            rows.append((kind, tally))
    minutes = (time.monotonic() - began) / 60
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(_report(rows, options.repeat, options.fsync, minutes))
    print(options.out.read_text())  # noqa: T201
    return int(any(tally.lost or tally.wrong or tally.stuck for _, tally in rows))


def _report(rows: list[tuple[str, Tally]], repeat: int, fsync: str, minutes: float) -> str:
    lines = [
        f"# Faults, {repeat} times each (Redis appendfsync {fsync}; {minutes:.0f} minutes)",
        "",
        (
            "| fault | jobs answered 202 | lost | wrong or mixed pictures | stuck after 60 s "
            "| slowest recovery |"
        ),
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {kind} | {tally.jobs} | {tally.lost} | {tally.wrong} | {tally.stuck} "
        f"| {tally.slowest_seconds:.1f} s |"
        for kind, tally in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
