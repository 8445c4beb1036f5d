"""What the client returns: jobs, pictures and events, as read from the service's JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

FINAL_STATUSES: Final = frozenset({"succeeded", "failed", "canceled", "expired"})


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished picture. Width and height in pixels."""

    url: str
    content_type: str
    width: int
    height: int
    seed: int
    sha256: str

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read an entry of a job's `images`."""
        return cls(**{name: content[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stood when the service was asked.

    `raw` is the service's whole JSON, with whatever a newer service adds to it.
    """

    id: str
    status: str
    step: int
    total_steps: int
    queue_position: int | None
    eta_seconds: float | None
    images: tuple[Picture, ...]
    raw: Mapping[str, Any]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read a job resource. Raises `KeyError` where it is none."""
        return cls(
            id=content["id"],
            status=content["status"],
            step=content["progress"]["step"],
            total_steps=content["progress"]["total"],
            queue_position=content["queue_position"],
            eta_seconds=content["eta_seconds"],
            images=tuple(Picture.from_json(image) for image in content["images"]),
            raw=content,
        )

    @property
    def is_final(self) -> bool:
        """Whether the job has ended and cannot change any more."""
        return self.status in FINAL_STATUSES

    @property
    def input(self) -> Mapping[str, Any]:
        """Every parameter, resolved."""
        resolved: Mapping[str, Any] = self.raw["input"]
        return resolved

    @property
    def error(self) -> Mapping[str, Any] | None:
        """Why the job failed: `type`, `title` and `detail`."""
        cause: Mapping[str, Any] | None = self.raw["error"]
        return cause


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event of a job: `status`, `progress`, `preview` or `done`."""

    name: str
    data: Mapping[str, Any]
    id: str | None = None
