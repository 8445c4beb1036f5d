"""The RQ job as this service reads it: an id and nothing to run.

Whoever can write to Redis can name any function in an RQ job, or plant a pickle. So a worker
never imports a name that it reads there: it knows one task, and refuses everything else.
"""

from typing import Any, NoReturn

from rq.exceptions import DeserializationError
from rq.job import Job as RqJob

from service.core.queue import TASK


class Refused(Exception):
    """Raised when an RQ job asks for anything but our one task."""


class QueuedJob(RqJob):
    """An RQ job that cannot import, call back or call out, whatever its hash says."""

    @property
    def func(self) -> NoReturn:
        """Raise `Refused`: the runner knows its task and never looks one up by name."""
        raise Refused("a worker runs no function by name")

    success_callback = failure_callback = stopped_callback = func

    def send_webhooks(self, *_args: Any, **_kwargs: Any) -> None:
        """Send nothing: the service's own webhooks are signed and repeated, RQ's are not."""


def check(job: RqJob) -> None:
    """Raise `Refused` where a fetched job is anything but `TASK` on its own record."""
    try:
        honest = (
            job.func_name == TASK
            and job.instance is None
            and list(job.args) == [job.id]
            and not job.kwargs
        )
    except (DeserializationError, TypeError) as error:
        raise Refused("its payload is not the JSON that the API writes") from error
    if not honest:
        raise Refused("it names another task or other arguments than the API does")
    named = (job._success_callback_name, job._failure_callback_name, job._stopped_callback_name)  # noqa: SLF001  the public properties would import what they name
    if any(named) or job.webhooks:
        raise Refused("it carries callbacks, which the API never sets")
