"""A worker's registry entry, where a test needs only some of its fields."""

from service.core.worker_registry import WorkerInfo


def worker_info(**fields: object) -> WorkerInfo:
    """A warm worker on a CPU that has just registered; every field may be given."""
    defaults = {
        "name": "another",
        "ready": True,
        "models": ("shapes",),
        "device": "cpu",
        "slots": 1,
        "running": 0,
        "row_steps_per_second": 1.0,
    }
    return WorkerInfo.model_validate(defaults | fields)
