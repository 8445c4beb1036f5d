"""Who takes the next step: short jobs do not wait for long ones, and nobody starves."""

import itertools
from dataclasses import dataclass, field

from workers.engine.policy import CREDIT, Policy


@dataclass(eq=False)
class Job:
    """A job of one guided row and how many steps it has left."""

    arrival: int
    steps: int
    group: str = "a"
    places: int = 2
    cost: int = field(init=False)
    ended_at: int = -1

    def __post_init__(self) -> None:
        self.cost = self.steps * self.places


def run(
    policy: Policy, jobs: list[Job], *, turns: int, arrivals: dict[int, Job] | None = None
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
    history = run(Policy(lambda _group: 8), list(jobs), turns=100)
    assert all(len(chosen) == 4 for chosen in history[:10])
    assert [job.ended_at for job in jobs] == [9, 9, 9, 9, 19, 19]


def test_a_short_job_behind_long_ones_takes_at_most_four_times_its_work_alone() -> None:
    """Counted in places computed from its arrival to its end, the step under way included."""
    alone = 4 * 2
    long = [Job(n, 50) for n in range(7)]
    short = Job(7, 4)
    history = run(Policy(lambda _group: 16), [*long], turns=30, arrivals={11: short})
    under_way = sum(job.places for job in history[10])
    since = sum(sum(job.places for job in chosen) for chosen in history[11 : short.ended_at + 1])
    assert under_way + since <= 4 * alone


def test_a_short_job_does_not_wait_where_the_batch_is_full_of_long_ones() -> None:
    """Even a cap that the long jobs fill lets it through at once."""
    short = Job(7, 4)
    run(Policy(lambda _group: 4), [*(Job(n, 50) for n in range(7)), short], turns=10)
    assert short.ended_at == 3


def test_an_endless_stream_of_short_jobs_does_not_stop_a_long_one() -> None:
    """The long job keeps at least a third of the turns."""
    long = Job(0, 60)
    arrivals = {turn: Job(turn + 1, 2) for turn in range(400)}
    run(Policy(lambda _group: 2), [long], turns=400, arrivals=arrivals)
    assert 0 <= long.ended_at <= CREDIT + 3 * 60


def test_every_size_gets_its_turn() -> None:
    """A job of another size advances at least every second turn beside a busy one."""
    many = [Job(n, 100) for n in range(8)]
    other = Job(8, 100, group="b")
    history = run(Policy(lambda _group: 16), [*many, other], turns=60)
    turns = [turn for turn, chosen in enumerate(history) if other in chosen]
    assert all(later - earlier <= 2 for earlier, later in itertools.pairwise(turns))
    assert len(turns) >= 29


def test_a_stream_of_new_sizes_does_not_stop_an_old_job() -> None:
    """New groups queue behind those that wait already."""
    old = Job(0, 30)
    arrivals = {turn: Job(turn + 1, 9, group=f"new-{turn}") for turn in range(3, 400, 10)}
    run(Policy(lambda _group: 2), [old], turns=400, arrivals=arrivals)
    assert 0 <= old.ended_at <= CREDIT + 3 * 30 * 2


def test_one_row_runs_even_where_it_is_larger_than_the_cap() -> None:
    """A guided row takes two places whatever the cap says."""
    assert len(Policy(lambda _group: 1).choose([Job(0, 5)])) == 1
