"""What a worker says of itself, where a test cares for few of it."""

import time

from service.core.worker_registry import Presence


def presence(**fields: object) -> Presence:
    """A warm worker on a CPU that has just spoken; every field may be given."""
    defaults = {
        "name": "another",
        "ready": True,
        "models": ("shapes",),
        "device": "cpu",
        "slots": 1,
        "running": 0,
        "row_steps_per_second": 1.0,
        "at": time.time(),
    }
    return Presence.model_validate(defaults | fields)
