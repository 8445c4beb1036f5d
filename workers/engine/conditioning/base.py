"""What the rows of a batch attend to, joined from what each job brought along.

Joined only when the membership of a batch changes, not at each step.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from workers.engine.attention import Context
from workers.engine.conditioning.control import Conditions, ControlConditions
from workers.engine.rows import Row

KEPT: Final = 4
"""Joined contexts remembered for a model: long rows and short ones, UNet and ControlNet."""


@dataclass(frozen=True, slots=True)
class Place:
    """One side of one row in a batch."""

    row: Row
    side: int

    @property
    def conditions(self) -> Conditions:
        """What steers it."""
        return self.row.conditions

    @property
    def index(self) -> int:
        """Where its side stands in tensors with the job's sides first."""
        return self.row.conditions.index(self.side)

    @property
    def control(self) -> ControlConditions:
        """Its ControlNet's share; only for places that a map acts on."""
        control = self.row.conditions.control
        assert control is not None, "asked for the ControlNet of a row that has none"
        return control

    @property
    def acting(self) -> str | None:
        """The ControlNet that acts on it at its next step."""
        control = self.row.conditions.control
        return control.name if control is not None and control.active[self.row.step] else None

    @property
    def key(self) -> tuple[int, int]:
        """Places with one key attend to the same."""
        return (self.row.conditions.number, self.side)


class Contexts:
    """Remembers the contexts that were joined last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Context] = OrderedDict()

    def unet(self, places: Sequence[Place]) -> Context:
        """What the UNet's rows attend to."""
        return self._get("", places, join)

    def control(self, name: str, places: Sequence[Place]) -> Context:
        """What the rows of the ControlNet called `name` attend to."""
        return self._get(
            name, places, lambda them: Context(torch.stack([p.control.text[p.index] for p in them]))
        )

    def clear(self) -> None:
        """Forget all, to free their memory."""
        self._kept.clear()

    def _get(
        self, net: str, places: Sequence[Place], make: Callable[[Sequence[Place]], Context]
    ) -> Context:
        key = (net, *(place.key for place in places))
        if key not in self._kept:
            self._kept[key] = make(places)
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]


def join(places: Sequence[Place]) -> Context:
    """Join what places of different jobs attend to into one context.

    Rows with fewer image tokens than others are padded behind a bias of minus infinity; rows
    without an image prompt see zeros and have lambda 0.
    """
    text = torch.stack([place.conditions.text[place.index] for place in places])
    images = [place.conditions.image for place in places]
    counts = [0 if image is None else image.shape[1] for image in images]
    longest = max(counts)
    if longest == 0:
        return Context(text)
    image = text.new_zeros(len(places), longest, text.shape[2])
    scale = text.new_zeros(len(places), len(places[0].conditions.scale))
    bias = text.new_full((len(places), longest), -torch.inf)
    for position, (place, own, count) in enumerate(zip(places, images, counts, strict=True)):
        bias[position, : max(count, 1)] = 0
        if own is None:
            continue
        image[position, :count] = own[place.index]
        scale[position] = place.conditions.scale
        if place.conditions.bias is not None:
            bias[position, :count] = place.conditions.bias
    weighted = any(place.conditions.bias is not None for place in places)
    plain = not weighted and all(count in (0, longest) for count in counts)
    return Context(text, image, scale, None if plain else bias)
