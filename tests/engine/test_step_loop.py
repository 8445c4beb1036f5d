"""Jobs join, leave and are cancelled between steps without disturbing each other."""

from collections.abc import Callable

import pytest

from service.core.errors import TookTooLong
from tests.engine.conftest import Stepper, Steps, job, request
from tests.running import until
from workers.engine.api import Canceled, Ticket
from workers.engine.engine import Engine


def test_progress_is_reported_after_each_step(stepper: Stepper) -> None:
    """Step by step, up to the last."""
    steps = Steps()
    stepper.run(job(request(num_images=2)), steps)
    assert steps.heard == [(step, 4) for step in range(1, 5)]


def test_a_canceled_job_takes_no_further_step(stepper: Stepper) -> None:
    """Its rows are gone before the next step; the others end well."""
    tickets: list[Ticket] = []
    steps = Steps(3, lambda: [ticket.cancel() for ticket in tickets[:1]])
    tickets += stepper.submit_all(
        (job(request(steps=50, seed=1), "canceled"), steps), job(request(steps=10, seed=2), "stays")
    )
    with pytest.raises(Canceled):
        stepper.finish(tickets[0])
    (result,) = stepper.finish(tickets[1])
    assert result.max_batch == 4
    assert steps.heard[-1] == (3, 50)
    assert stepper.observer.forwards == [4] * 3 + [2] * 7  # from then on the other job was alone


def test_a_job_can_be_canceled_twice_and_a_finished_one_stays_finished(stepper: Stepper) -> None:
    """The first end counts."""
    ticket = stepper.submit(job(request()))
    (result,) = stepper.finish(ticket)
    ticket.cancel()
    assert ticket.result(0) is result
    canceled = stepper.submit(job(request()))
    canceled.cancel()
    canceled.cancel()
    with pytest.raises(Canceled):
        canceled.result(0)


def test_a_job_that_computes_for_too_long_ends_alone(
    make_engine: Callable[..., Engine],
) -> None:
    """It takes no step after its time is over, and its error says why; the others go on."""
    stepper = Stepper(make_engine(job_timeout_seconds=3600))

    def an_hour_later() -> None:
        stepper.rows_of("slow")[0].work.ready_at -= 3600

    slow = Steps(3, an_hour_later)
    late, stays = stepper.submit_all(
        (job(request(steps=50, seed=1), "slow"), slow), job(request(steps=10, seed=2), "stays")
    )
    with pytest.raises(TookTooLong, match="3600 s") as failure:
        stepper.finish(late)
    assert not failure.value.retryable
    assert slow.heard[-1] == (3, 50)
    assert stepper.finish(stays)[0].max_batch == 4


def test_a_job_joins_others_that_are_running(stepper: Stepper) -> None:
    """A job that comes later shares the steps that are left, and comes out the same."""
    first = stepper.submit_all(job(request(seed=1, steps=20), "first"))
    stepper.turn()
    stepper.turn()
    late = stepper.submit_all(job(request(seed=2, steps=6), "late"))
    results = stepper.finish(*first, *late)
    assert [result.max_batch for result in results] == [4, 4]
    for name, seed, steps in (("first", 1, 20), ("late", 2, 6)):
        stepper.run(job(request(seed=seed, steps=steps), "alone"))
        assert stepper.difference(name, "alone") <= 1e-4


def test_a_short_job_behind_seven_long_ones_waits_for_few_of_their_steps(
    stepper: Stepper,
) -> None:
    """From its arrival to its end at most four times the entries of its run alone are computed."""
    alone = 4 * 2
    stepper.submit_all(*(job(request(seed=seed, steps=50), f"{seed}") for seed in range(7)))
    for _ in range(20):
        stepper.turn()
    forwards, before = stepper.observer.forwards, len(stepper.observer.forwards)
    ended: list[int] = []
    last = Steps(4, lambda: ended.append(len(forwards)))
    stepper.finish(*stepper.submit_all((job(request(seed=9, steps=4), "short"), last)))
    # The step that was being computed when it arrived counts too.
    assert sum(forwards[before - 1 : ended[0]]) <= 4 * alone


def test_an_engine_says_whether_it_is_busy_and_alive(engine: Engine) -> None:
    """What the worker's health check reads."""
    ticket = engine.submit(job(request()), Steps(1, lambda: busy.append(engine.busy)))
    busy: list[bool] = []
    ticket.result(60)
    assert busy == [True]
    until(lambda: not engine.busy, what="the end of the last job")
    assert engine.alive


def test_a_step_that_is_started_before_the_last_was_looked_at_changes_nothing(
    stepper: Stepper,
) -> None:
    """On CUDA the engine is one step ahead of what it reports; the pictures are the same."""
    wanted = [request(seed=1), request(seed=2, num_images=2, steps=5), request(seed=3, steps=1)]
    for index, each in enumerate(wanted):
        stepper.run(job(each, f"now-{index}"))
    stepper.loop.ahead = 1
    heard = Steps()
    jobs = [(job(each, f"ahead-{index}"), heard) for index, each in enumerate(wanted)]
    stepper.finish(*stepper.submit_all(*jobs))
    assert sorted(heard.heard) == sorted(
        (step, each.steps) for each in wanted for step in range(1, each.steps + 1)
    )
    for index in range(len(wanted)):
        assert stepper.difference(f"now-{index}", f"ahead-{index}") <= 1e-4
