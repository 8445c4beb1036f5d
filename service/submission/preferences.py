"""`Prefer` (RFC 7240) and `Accept` (RFC 9110, section 12.5.1).

A preference that cannot be parsed is ignored, as the RFC demands.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from service.core.param_types import OutputFormat

MAX_WAIT_SECONDS: Final = 60
_JSON: Final = "application/json"
_PREFERENCE: Final = re.compile(r"""([\w-]+)\s*(?:=\s*"?([^";]*)"?)?""")


@dataclass(frozen=True, slots=True)
class Preferences:
    """How long the client is willing to wait for the end of the job, in seconds."""

    wait_seconds: int | None = None
    respond_async: bool = False


def read_prefer(values: Sequence[str]) -> Preferences:
    """The preferences in all `Prefer` headers; the first of a name counts (RFC 7240, 2)."""
    found: dict[str, str] = {}
    for value in values:
        for piece in value.split(","):
            match = _PREFERENCE.match(piece.strip())
            if match is not None:
                found.setdefault(match[1].lower(), (match[2] or "").strip())
    wait = found.get("wait")
    if wait == "":  # without a value, which the RFC calls the same as an empty one
        wait = str(MAX_WAIT_SECONDS)
    valid = wait is not None and re.fullmatch(r"[0-9]{1,9}", wait)
    seconds = min(int(valid[0]), MAX_WAIT_SECONDS) if valid else None
    return Preferences(seconds, "respond-async" in found)


@dataclass(frozen=True, slots=True)
class Accept:
    """The weight 0..1 of each media range that a client accepts."""

    weights: Mapping[str, float]

    def picture_format(self, asked: OutputFormat | None) -> OutputFormat | None:
        """The format in which the picture itself is preferred to JSON; `None` for JSON.

        `asked` is the request's own `output_format`.
        """
        choices = tuple(OutputFormat) if asked is None else (asked,)
        best = max(choices, key=lambda choice: self._weight(choice.content_type))
        weight = self._weight(best.content_type)
        return best if weight > self._weight(_JSON) else None

    def _weight(self, kind: str) -> float:
        """Of a media type, by the most specific range that covers it."""
        for covering in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
            if covering in self.weights:
                return self.weights[covering]
        return 0.0


def read_accept(value: str) -> Accept:
    """Parse an `Accept` header."""
    weights = {}
    for part in value.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, number = parameter.partition("=")
            if name.strip() == "q":
                weight = _quality(number.strip())
        if kind:
            weights[kind] = weight
    return Accept(weights)


def _quality(text: str) -> float:
    return float(text) if re.fullmatch(r"(0(\.\d{0,3})?|1(\.0{0,3})?)", text) else 0.0
