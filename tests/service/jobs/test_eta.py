"""Times that are told come true where the pace stays as it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs.eta import Pace, RemainingWork, seconds_to_end

WORKS = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 60)), max_size=30)


def ends(held: list[RemainingWork], waiting: list[RemainingWork], slots: int) -> dict[str, float]:
    """With steps of a tenth of a second for each row."""
    return seconds_to_end(
        held, waiting, slots=slots, step_seconds=lambda rows: rows / 10, overhead_seconds=1
    )


def test_jobs_that_are_held_share_the_steps() -> None:
    assert ends([RemainingWork("a", 2, 10)], [], 4) == {"a": pytest.approx(3)}
    both = ends([RemainingWork("a", 1, 10), RemainingWork("b", 1, 30)], [], 4)
    assert both == {"a": pytest.approx(3), "b": pytest.approx(5)}


def test_the_next_one_joins_when_one_leaves() -> None:
    told = ends(
        [RemainingWork("a", 1, 10)], [RemainingWork("b", 1, 10), RemainingWork("c", 1, 10)], 1
    )
    assert told == {name: pytest.approx(end) for name, end in (("a", 2), ("b", 3), ("c", 4))}
    shared = ends(
        [RemainingWork("a", 1, 10), RemainingWork("b", 1, 20)], [RemainingWork("c", 1, 10)], 2
    )
    assert shared == {"a": pytest.approx(3), "b": pytest.approx(5), "c": pytest.approx(5)}


def test_workers_may_hold_more_than_they_say() -> None:
    told = ends([RemainingWork("a", 1, 10), RemainingWork("b", 1, 10)], [], 1)
    assert told == {"a": pytest.approx(2), "b": pytest.approx(3)}


@given(works=WORKS, slots=st.integers(1, 8), held=st.integers(0, 8))
def test_all_work_is_done_at_the_rate(works: list[tuple[int, int]], slots: int, held: int) -> None:
    jobs = [RemainingWork(str(at), rows, steps) for at, (rows, steps) in enumerate(works)]
    told = ends(jobs[:held], jobs[held:], slots)
    assert set(told) == {job.job_id for job in jobs}
    if jobs:
        assert max(told.values()) == pytest.approx(1 + sum(r * s for r, s in works) / 10)


def test_a_pace_is_learned_from_what_is_seen() -> None:
    pace = Pace()
    assert not pace.is_known
    pace.seed(10.0)
    assert pace.step_seconds(16) == pytest.approx(1.6)
    for rows in (1, 2, 4, 8, 3, 6) * 8:
        pace.observe_step(rows, 0.5 + 0.25 * rows)
    for rows in (1, 5, 16):
        assert pace.step_seconds(rows) == pytest.approx(0.5 + 0.25 * rows, rel=0.05)
    pace.seed(10.0)
    assert pace.step_seconds(1) == pytest.approx(0.75, rel=0.05), "what was seen counts for more"


@given(st.lists(st.tuples(st.floats(0.1, 64), st.floats(0.001, 100)), min_size=1, max_size=40))
def test_a_pace_is_never_negative_and_more_rows_never_take_less(
    seen: list[tuple[float, float]],
) -> None:
    pace = Pace()
    for rows, seconds in seen:
        pace.observe_step(rows, seconds)
    assert 0 <= pace.step_seconds(1) <= pace.step_seconds(64) * (1 + 1e-9)


def test_first_words_that_are_off_as_a_rule_are_corrected() -> None:
    pace = Pace()
    assert pace.correction == 1
    for _ in range(60):
        pace.observe_end(2.0, 3.0)
    assert pace.correction == pytest.approx(1.5, rel=0.01)
    for _ in range(60):
        pace.observe_end(0.0, 1e9)
    assert pace.correction <= 3


def test_the_time_beside_the_steps_is_learned() -> None:
    pace = Pace()
    for _ in range(60):
        pace.observe_overhead(2.0)
    assert pace.overhead_seconds == pytest.approx(2.0, rel=0.05)
