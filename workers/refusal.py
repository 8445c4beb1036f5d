"""What happens to a queued job that a worker must not run: its record ends, nothing is run."""

from typing import Final
from uuid import uuid4

from service.core.errors import URN
from service.core.job import JobError, JobMetrics
from service.core.transitions import Claim, Transitions
from workers.leases import Leases

_ERROR: Final = JobError(
    type=f"{URN}refused",
    title="Refused",
    detail="The queued job was not as the API had written it, so no worker ran it.",
)


def end(transitions: Transitions, leases: Leases, job_id: str, worker_name: str) -> None:
    """Fail the record of a refused job, if there is one, and delete its RQ job.

    Raises `redis.RedisError` where Redis does not answer; it is refused again then.
    """
    claim = Claim(job_id, uuid4().hex)
    if transitions.claim(claim, worker_name):
        transitions.fail(claim, _ERROR, JobMetrics())
    leases.refuse(job_id)
