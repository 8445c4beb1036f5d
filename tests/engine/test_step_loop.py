"""Jobs join, leave and are cancelled between steps without disturbing each other."""

import numpy as np
import pytest

from service.core.errors import TookTooLong
from tests.engine.conftest import Arrivals, Counts, Gate, Rows, Steps, job, request
from tests.running import until
from workers.engine.api import Canceled
from workers.engine.engine import Engine


def test_progress_is_told_after_each_step(engine: Engine) -> None:
    """Step by step, up to the last."""
    steps = Steps()
    engine.submit(job(request(num_images=2)), steps).result(60)
    assert steps.heard == [(step, 4) for step in range(1, 5)]


def test_a_canceled_job_takes_no_further_step(engine: Engine, observer: Counts) -> None:
    """Its rows are gone before the next step; the others end well."""
    tickets = []

    def cancel() -> None:
        tickets[0].cancel()

    steps = Steps(3, cancel)
    with Gate(engine) as gate:
        tickets.append(engine.submit(job(request(steps=50, seed=1), "gone"), steps))
        stays = engine.submit(job(request(steps=10, seed=2), "stays"))
        gate.wait_for(2)
    with pytest.raises(Canceled):
        tickets[0].result(60)
    assert stays.result(60).max_batch == 4
    assert steps.heard[-1] == (3, 50)
    assert observer.forwards.count(2) >= 7  # from then on the other job was alone


def test_a_canceled_job_can_be_canceled_again_and_a_finished_one_stays_finished(
    engine: Engine,
) -> None:
    """The first end counts."""
    ticket = engine.submit(job(request()))
    result = ticket.result(60)
    ticket.cancel()
    assert ticket.result(0) is result
    with Gate(engine):
        gone = engine.submit(job(request()))
        gone.cancel()
        gone.cancel()
        with pytest.raises(Canceled):
            gone.result(0)


def test_a_job_that_computes_for_too_long_ends_alone(
    engine: Engine, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no step after its time is over, and its error says why; the others go on."""
    monkeypatch.setattr(engine._stepper, "_job_timeout_seconds", 3600)

    def an_hour_later() -> None:
        rows.of("slow")[0].work.ready_at -= 3600

    slow = Steps(3, an_hour_later)
    with Gate(engine) as gate:
        late = engine.submit(job(request(steps=50, seed=1), "slow"), slow)
        stays = engine.submit(job(request(steps=10, seed=2), "stays"))
        gate.wait_for(2)
    with pytest.raises(TookTooLong, match="3600 s") as failure:
        late.result(60)
    assert not failure.value.retryable
    assert slow.heard[-1] == (3, 50)
    assert stays.result(60).max_batch == 4


def test_a_job_joins_others_on_their_way(engine: Engine, rows: Rows) -> None:
    """A job that comes later shares the steps that are left, and comes out the same."""
    late: list[object] = []

    def join() -> None:
        late.append(engine.submit(job(request(seed=2, steps=6), "late")))
        arrivals.wait_for(2)  # the first one's arrival, then its own

    with Arrivals(engine) as arrivals:
        ticket = engine.submit(job(request(seed=1, steps=20), "first"), Steps(2, join))
        first = ticket.result(60)
    second = late[0].result(60)
    assert first.max_batch == second.max_batch == 4
    for name, seed, steps in (("first", 1, 20), ("late", 2, 6)):
        engine.submit(job(request(seed=seed, steps=steps), "alone")).result(60)
        assert np.abs(rows.decoded(name) - rows.decoded("alone")).max() <= 1e-4


def test_a_short_job_behind_seven_long_ones_waits_for_few_of_their_steps(
    engine: Engine, observer: Counts
) -> None:
    """From its arrival to its end at most four times the places of its run alone are computed."""
    alone = 4 * 2
    marks: list[int] = []
    tickets = []

    def arrive() -> None:
        marks.append(len(observer.forwards))
        ticket = engine.submit(job(request(seed=9, steps=4), "short"), Steps(4, ended))
        tickets.append(ticket)

    def ended() -> None:
        marks.append(len(observer.forwards))

    with Gate(engine) as gate:
        long = [
            engine.submit(
                job(request(seed=seed, steps=50), f"{seed}"),
                Steps(20, arrive) if seed == 0 else None,
            )
            for seed in range(7)
        ]
        gate.wait_for(7)
    for ticket in long:
        ticket.result(60)
    tickets[0].result(60)
    # Its input is read while steps go on; it counts from the step in which it is first there.
    small = [i for i, n in enumerate(observer.forwards) if i >= marks[0] and n == 2]
    places = observer.forwards[small[0] - 1 : marks[1]]
    assert sum(places) <= 4 * alone


def test_an_engine_says_whether_it_is_busy_and_alive(engine: Engine) -> None:
    """What the worker's health check reads."""
    with Gate(engine):
        ticket = engine.submit(job(request()))
        assert engine.busy
    ticket.result(60)
    until(lambda: not engine.busy, what="the end of the last job")
    assert engine.alive


def test_a_step_started_before_the_last_was_looked_at_changes_nothing(
    engine: Engine, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA the engine is one step ahead of what it tells; the pictures are the same."""
    wanted = [request(seed=1), request(seed=2, num_images=2, steps=5), request(seed=3, steps=1)]
    for index, each in enumerate(wanted):
        engine.submit(job(each, f"now-{index}")).result(60)
    monkeypatch.setattr(engine._stepper, "_ahead", 1)
    heard = Steps()
    tickets = [engine.submit(job(each, f"ahead-{i}"), heard) for i, each in enumerate(wanted)]
    for ticket in tickets:
        ticket.result(60)
    assert sorted(heard.heard) == sorted(
        (step, each.steps) for each in wanted for step in range(1, each.steps + 1)
    )
    for index in range(len(wanted)):
        difference = rows.decoded(f"now-{index}") - rows.decoded(f"ahead-{index}")
        assert np.abs(difference).max() <= 1e-4
