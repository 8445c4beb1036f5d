"""What a client would like: `Prefer` (RFC 7240) and `Accept` (RFC 9110, section 12.5.1).

Pure functions over header values. A preference that cannot be read is no error, it is ignored.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.core.params import OutputFormat

MAX_WAIT_SECONDS: Final = 60
_JSON: Final = "application/json"
_PREFERENCE: Final = re.compile(r"""([\w-]+)\s*(?:=\s*"?([^";]*)"?)?""")


@dataclass(frozen=True, slots=True)
class Preferences:
    """How long the client wants its answer held, in seconds; `None` for not at all."""

    wait_seconds: int | None = None
    respond_async: bool = False

    @property
    def applied(self) -> str | None:
        """`Preference-Applied` for an answer that was held."""
        return None if self.wait_seconds is None else f"wait={self.wait_seconds}"


def read_prefer(values: Sequence[str]) -> Preferences:
    """The preferences in all `Prefer` headers; the first of a name counts (RFC 7240, 2)."""
    found: dict[str, str] = {}
    for value in values:
        for piece in value.split(","):
            match = _PREFERENCE.match(piece.strip())
            if match is not None:
                found.setdefault(match[1].lower(), (match[2] or "").strip())
    wait = found.get("wait", "")
    seconds = min(int(wait), MAX_WAIT_SECONDS) if re.fullmatch(r"[0-9]{1,9}", wait) else None
    return Preferences(seconds, "respond-async" in found)


def read_accept(value: str) -> dict[str, float]:
    """The weight 0..1 of each media range in an `Accept` header."""
    weights = {}
    for part in value.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, number = parameter.partition("=")
            if name.strip() == "q":
                weight = _weight(number.strip())
        if kind:
            weights[kind] = weight
    return weights


def _weight(text: str) -> float:
    return float(text) if re.fullmatch(r"(0(\.\d{0,3})?|1(\.0{0,3})?)", text) else 0.0


def _weight_of(kind: str, weights: dict[str, float]) -> float:
    """Of a media type, by the most specific range that covers it."""
    for covering in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        if covering in weights:
            return weights[covering]
    return 0.0


def wanted_format(accept: str, asked: OutputFormat | None) -> OutputFormat | None:
    """The picture format in which the answer is to be the picture itself.

    `asked` is what the request's own `output_format` says. `None` where JSON is as welcome.
    """
    weights = read_accept(accept)
    choices = tuple(OutputFormat) if asked is None else (asked,)
    best = max(choices, key=lambda choice: _weight_of(choice.content_type, weights))
    weight = _weight_of(best.content_type, weights)
    return best if weight > _weight_of(_JSON, weights) else None
