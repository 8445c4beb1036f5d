"""Which rows take the next step, and how many: short jobs do not wait, no job starves."""

import itertools
import math
from dataclasses import dataclass, field

import pytest

from workers.engine.batch_policy import CREDIT, BatchCaps, BatchPolicy, choose_cap


@dataclass(eq=False)
class Job:
    """A row, guided if nothing else is said, and how many steps it has left."""

    arrival: int
    steps: int
    group: str = "a"
    entries: int = 2
    rows: int = 1
    """How many rows its job has; this is one of them."""
    cost: int = field(init=False)
    ended_at: int = -1

    def __post_init__(self) -> None:
        self.cost = self.steps * self.entries * self.rows


def run(
    policy: BatchPolicy, jobs: list[Job], *, turns: int, arrivals: dict[int, Job] | None = None
) -> list[list[Job]]:
    """Run turns and return who was in each."""
    history = []
    for turn in range(turns):
        if arrivals and turn in arrivals:
            jobs.append(arrivals[turn])
        if not jobs:
            break
        chosen = policy.choose(jobs)
        history.append(chosen)
        for job in chosen:
            job.steps -= 1
            if job.steps == 0:
                job.ended_at = turn
                jobs.remove(job)
    return history


def test_jobs_of_one_size_share_every_turn_up_to_the_cap() -> None:
    """Rows that fit run together, and those beyond the cap wait for the first to end."""
    jobs = [Job(n, 10) for n in range(6)]
    history = run(BatchPolicy(lambda _group: 8), list(jobs), turns=100)
    assert all(len(chosen) == 4 for chosen in history[:10])
    assert [job.ended_at for job in jobs] == [9, 9, 9, 9, 19, 19]


def test_a_short_job_behind_long_ones_takes_at_most_four_times_its_work_alone() -> None:
    """Counted in entries computed from its arrival to its end, the step under way included."""
    alone = 4 * 2
    long = [Job(n, 50) for n in range(7)]
    short = Job(7, 4)
    history = run(BatchPolicy(lambda _group: 16), [*long], turns=30, arrivals={11: short})
    under_way = sum(job.entries for job in history[10])
    since = sum(sum(job.entries for job in chosen) for chosen in history[11 : short.ended_at + 1])
    assert under_way + since <= 4 * alone


def test_a_short_job_does_not_wait_where_the_batch_is_full_of_long_ones() -> None:
    """Even a cap that the long jobs fill lets it through at once."""
    short = Job(7, 4)
    run(BatchPolicy(lambda _group: 4), [*(Job(n, 50) for n in range(7)), short], turns=10)
    assert short.ended_at == 3


def test_an_endless_stream_of_short_jobs_does_not_stop_a_long_one() -> None:
    """The long job keeps at least a third of the turns."""
    long = Job(0, 60)
    arrivals = {turn: Job(turn + 1, 2) for turn in range(400)}
    run(BatchPolicy(lambda _group: 2), [long], turns=400, arrivals=arrivals)
    assert 0 <= long.ended_at <= CREDIT + 3 * 60


def test_every_size_gets_its_turn() -> None:
    """A job of another size advances at least every second turn beside a busy one."""
    many = [Job(n, 100) for n in range(8)]
    other = Job(8, 100, group="b")
    history = run(BatchPolicy(lambda _group: 16), [*many, other], turns=60)
    turns = [turn for turn, chosen in enumerate(history) if other in chosen]
    assert all(later - earlier <= 2 for earlier, later in itertools.pairwise(turns))
    assert len(turns) >= 29


def test_a_stream_of_new_sizes_does_not_stop_an_old_job() -> None:
    """New groups queue behind those that wait already."""
    old = Job(0, 30)
    arrivals = {turn: Job(turn + 1, 9, group=f"new-{turn}") for turn in range(3, 400, 10)}
    run(BatchPolicy(lambda _group: 2), [old], turns=400, arrivals=arrivals)
    assert 0 <= old.ended_at <= CREDIT + 3 * 30 * 2


@pytest.mark.parametrize("cap", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("rows", [2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_job_of_several_rows_ends_within_the_bound_whatever_else_arrives(
    cap: int, rows: int, groups: int
) -> None:
    """It needs its steps once for each batch that its rows make under the cap."""
    steps = 10
    mine = [Job(0, steps, rows=rows) for _ in range(rows)]
    others = [Job(n, 1000, group=f"{n}") for n in range(1, groups)]
    arrivals = {turn: Job(turn + groups, 2, rows=2) for turn in range(2000)}
    run(BatchPolicy(lambda _group: cap), [*mine, *others], turns=2000, arrivals=arrivals)
    own = steps * math.ceil(rows / (cap // 2))
    assert all(0 <= row.ended_at < CREDIT + 3 * own * groups for row in mine)


def test_rows_beyond_the_cap_wait_for_their_own_job() -> None:
    """Four guided pictures under a cap of two entries take four times the steps, also alone."""
    mine = [Job(0, 10, rows=4) for _ in range(4)]
    run(BatchPolicy(lambda _group: 2), list(mine), turns=100)
    assert [row.ended_at for row in mine] == [9, 19, 29, 39]


def test_a_shorter_job_that_fits_may_end_before_an_earlier_one() -> None:
    """It takes capacity that the earlier one cannot use, and does not delay it."""
    first, second = Job(0, 10), Job(1, 9)
    run(BatchPolicy(lambda _group: 4), [first, second], turns=20)
    assert (first.ended_at, second.ended_at) == (9, 8)


def test_one_row_runs_even_where_it_is_larger_than_the_cap() -> None:
    """A guided row takes two entries whatever the cap says."""
    assert len(BatchPolicy(lambda _group: 1).choose([Job(0, 5)])) == 1


def test_the_cap_is_the_smallest_batch_that_is_about_as_fast_as_the_best() -> None:
    """More rows than pay for themselves only make every job slower."""
    assert choose_cap({2: 0.10, 4: 0.12, 8: 0.20, 16: 0.39, 32: 0.80}) == 8
    assert choose_cap({2: 0.10, 4: 0.20}) == 2


def test_a_larger_picture_takes_fewer_rows_than_the_one_that_was_measured() -> None:
    """A size without a measurement of its own gets as many pixels as the nearest that has."""
    caps = BatchCaps(32)
    caps.set("m", 512, 512, 16)
    assert caps.of(("m", 512, 512, "")) == 16
    assert caps.of(("m", 1024, 1024, "")) == 4
    assert caps.of(("m", 2048, 2048, "")) == 2
    assert caps.of(("other", 512, 512, "")) == 32


def test_running_out_of_memory_lowers_the_cap_of_that_size_only() -> None:
    """Half of what did not fit, and never less than one guided row."""
    caps = BatchCaps(32)
    caps.lower(("m", 512, 512, ""), 12)
    assert caps.of(("m", 512, 512, "")) == 6
    assert caps.of(("m", 256, 256, "")) == 32
    caps.lower(("m", 512, 512, ""), 2)
    assert caps.of(("m", 512, 512, "")) == 2


def test_a_deterministic_job_has_a_cap_that_was_not_measured() -> None:
    """Batches of another size give other bytes, and a measurement differs from start to start."""
    caps = BatchCaps(32)
    caps.set("m", 512, 512, 16)
    assert caps.of(("m", 512, 512, "its id")) == 2
