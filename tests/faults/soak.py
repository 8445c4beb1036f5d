"""`python -m tests.faults.soak --minutes 15`: mixed load with cancels and kills, then silence.

Exit status 0 if every job is final, the queue is empty, no picture is wrong, and neither the API
nor the worker that lives grows (runs under five minutes are too short to tell). Redis grows by the
finished jobs that it keeps, so its figure is told and not judged. Figures go to out/soak.md.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.faults.load import DISTINCT, Tally, send
from tests.faults.memory import FLAT_AFTER_MINUTES, FLAT_MIB, Memory
from tests.faults.place import Place, opened
from tests.running import until
from tests.stack import FINAL, nothing_left

IN_FLIGHT = 24
"""Jobs that are out at once: more than the workers' slots, so there is always a queue."""
KILL_EVERY_SECONDS = 60.0
SAMPLE_SECONDS = 5.0
WARM_PART = 0.3
"""Memory is judged after this part of the time, when caches are full."""
JUDGED = ("api", "worker that lives")


def soak(place: Place, minutes: float) -> tuple[Tally, int, int, dict[str, Memory]]:
    """Load the service for `minutes`; tally, canceled jobs, kills and memory."""
    service = place.service
    memory = {"api": Memory(), "redis": Memory(), "worker that lives": Memory()}
    out: dict[str, int] = {}
    tally, canceled, kills = Tally(), 0, 0
    end = time.monotonic() + 60 * minutes
    next_kill, next_sample = time.monotonic() + KILL_EVERY_SECONDS, 0.0
    while time.monotonic() < end:
        if len(out) < IN_FLIGHT:
            out |= send(service, IN_FLIGHT - len(out))
        if random.random() < 0.1:
            service.client.post(f"/jobs/{random.choice(list(out))}/cancel")
        jobs = {job_id: service.job(job_id) for job_id in list(out)}
        ended = {job_id: out.pop(job_id) for job_id in jobs if jobs[job_id]["status"] in FINAL}
        stopped = [job_id for job_id in ended if jobs[job_id]["status"] == "canceled"]
        canceled += len(stopped)
        for job_id in stopped:
            del ended[job_id]
        tally += place.judge.judge(service, ended)
        now = time.monotonic()
        if now > next_kill:
            service.workers[-1].kill()
            place.replace_worker(len(service.workers) - 1)
            kills, next_kill = kills + 1, now + KILL_EVERY_SECONDS
        if now > next_sample:
            memory["api"].sample(service.api.process.pid)
            memory["redis"].sample(place.redis.process.pid)
            memory["worker that lives"].sample(service.workers[0].process.pid)
            next_sample = now + SAMPLE_SECONDS
        time.sleep(0.2)
    tally += place.judge.judge(service, out)
    until(lambda: nothing_left(service), what="an empty queue")
    return tally, canceled, kills, memory


def growing(memory: Mapping[str, Memory], minutes: float) -> list[str]:
    """The processes that grow and should not; none where `minutes` are too short to tell."""
    if minutes < FLAT_AFTER_MINUTES:
        return []
    return [name for name in JUDGED if memory[name].figures(WARM_PART)[1] >= FLAT_MIB]


def main() -> int:
    """Soak for as long as the command line says and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--out", type=Path, default=Path("out/soak.md"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, opened(Path(name), "everysec") as place:
        tally, canceled, kills, memory = soak(place, options.minutes)
    too_large = growing(memory, options.minutes)
    counts = f"{tally.jobs} jobs compared, {canceled} canceled, {kills} workers killed with -9"
    ends = f"Lost {tally.lost}, wrong {tally.wrong}, stuck {tally.stuck}"
    lines = [
        f"# Soak: {options.minutes:g} minutes, {DISTINCT} kinds of request",
        "",
        f"{counts}. {ends}; the queue ended empty.",
        "",
        "| process | memory at the end | growth after the warm part |",
        "|---|---|---|",
    ]
    for name, samples in memory.items():
        size, slope = samples.figures(WARM_PART)
        lines.append(f"| {name} | {size:.0f} MiB | {slope:+.2f} MiB a minute |")
    if too_large:
        lines += ["", f"These grow by {FLAT_MIB} MiB a minute or more: {', '.join(too_large)}."]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out.read_text())  # noqa: T201  a report for a person
    return int(bool(tally.lost or tally.wrong or tally.stuck or too_large))


if __name__ == "__main__":
    raise SystemExit(main())
