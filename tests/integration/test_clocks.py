"""Machines disagree about the time; Redis' clock decides."""

from collections.abc import Callable

import pytest

from tests.running import start_worker
from tests.stack import Service

SKEWED = ["-m", "tests.integration.skewed", "workers"]


@pytest.mark.parametrize("offset", [-40, 7200], ids=["40 s behind", "2 h ahead"])
def test_a_worker_with_a_wrong_clock_serves(
    make_service: Callable[..., Service], offset: int
) -> None:
    """It is ready, and no job expires or waits for its sake."""
    service = make_service()
    service.start_api()
    settings = {**service.settings, "CLOCK_OFFSET": offset}
    worker = service.stack.enter_context(
        start_worker(settings, service.folder / "worker.log", command=SKEWED)
    )
    worker.wait("/healthz/ready")
    service.api.wait("/healthz/ready")
    job = service.succeeded(service.submit(steps=2))
    assert 0 <= job["metrics"]["queue_seconds"] <= job["metrics"]["total_seconds"] < 300
    service.stop()
