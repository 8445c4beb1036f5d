"""The soak's exit status tells of processes that grow."""

import pytest

from tests.faults.memory import Memory
from tests.faults.soak import growing


def grown(mib_a_minute: float) -> Memory:
    memory = Memory()
    memory._samples = [(60.0 * minute, 100 + mib_a_minute * minute) for minute in range(15)]
    return memory


@pytest.mark.parametrize(
    ("api", "worker", "minutes", "found"),
    [
        (0.0, 0.4, 15, []),
        (0.0, 0.6, 15, ["worker that lives"]),
        (0.6, 0.6, 15, ["api", "worker that lives"]),
        (0.6, 0.6, 4, []),
    ],
)
def test_a_process_that_grows_fails_the_soak_and_redis_may(
    api: float, worker: float, minutes: float, found: list[str]
) -> None:
    memory = {"api": grown(api), "redis": grown(3), "worker that lives": grown(worker)}
    assert growing(memory, minutes) == found
