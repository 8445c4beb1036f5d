"""`python -m bench.memory`: the engine's memory over 500 jobs that use everything; out/bench/.

Jobs of nine tasks and one that is steered in every way at once, of two sizes, eight at a time; each
tenth is canceled. The embedding cache is so small that it is full from the start.
"""

import argparse
import logging
import resource
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch

from bench.engine import subject, tasks
from bench.engine.subject import Subject
from service.core.settings import Device
from workers.engine.api import Canceled, EngineJob, Options
from workers.engine.engine import load_engine

AT_ONCE: Final = 8
STEPS: Final = 4
CACHED: Final = 16
CANCELED: Final = 10
"""Each of these is canceled."""
REPORTS: Final = 10


def main(arguments: list[str] | None = None) -> None:
    """Run the jobs and write the report."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the command")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="imageprompt-bench-") as scratch:
        chosen = (subject.tiny_size if options.tiny else subject.bundled)(Path(scratch))
        used = measure(chosen, options.jobs)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "memory.md"
    path.write_text(report(chosen.title, used), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


def measure(chosen: Subject, jobs: int) -> dict[int, float]:
    """Resident memory (MiB) by the number of jobs done."""
    settings = Options(threads=1, slots=AT_ONCE, cache_entries=CACHED)
    engine = load_engine(chosen.catalog, settings, device=Device.CPU)
    engine.warm_up()
    used, each = {}, max(AT_ONCE, jobs // REPORTS)
    try:
        for start in range(0, jobs, AT_ONCE):
            wanted = [_job(chosen, number) for number in range(start, min(start + AT_ONCE, jobs))]
            tickets = [engine.submit(job) for job in wanted]
            for number, ticket in enumerate(tickets, start):
                if number % CANCELED == 0:
                    ticket.cancel()
                with suppress(Canceled):
                    ticket.result()
            done = start + len(wanted)
            if done // each > start // each or done == jobs:
                used[done] = resident()
                print(f"{done} jobs: {used[done]:.0f} MiB", flush=True)
    finally:
        engine.stop()
    return used


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def _job(chosen: Subject, number: int) -> EngineJob:
    seed = 10 * number
    asked = [
        *tasks.tasks(seed, chosen.control_type).values(),
        tasks.everything(seed, chosen.control_type),
    ]
    size = (chosen.burst, chosen.other)[number // len(asked) % 2]
    return chosen.job(seed, size=size, steps=STEPS, **asked[number % len(asked)])


def report(title: str, used: dict[int, float]) -> str:
    """The figures as Markdown."""
    rows = "\n".join(f"| {jobs} | {mib:.0f} |" for jobs, mib in used.items())
    half = [mib for jobs, mib in used.items() if jobs >= max(used) / 2]
    return (
        f"- subject: {title}\n- jobs: {max(used)}, {AT_ONCE} at a time, {STEPS} steps\n"
        f"- second half: {min(half):.0f} to {max(half):.0f} MiB, {half[-1] - half[0]:+.0f} MiB "
        f"from its first figure to its last\n\n| jobs done | resident, MiB |\n|---|---|\n{rows}\n"
    )


if __name__ == "__main__":
    main()
