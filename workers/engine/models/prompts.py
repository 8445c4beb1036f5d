"""Prompts as text encoders take them: in chunks of their length, with weights `(words:1.2)`.

A prompt that fits into one chunk and has no weights is plain, and is left to diffusers.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_CHUNKS: Final = 8
"""What is beyond so many chunks is cut off, with a warning."""
_WEIGHTED: Final = re.compile(r"\(([^()]+):([0-9]+(?:\.[0-9]+)?)\)")
HEAVIEST: Final = 2.0

TokenWeights = tuple[tuple[int, ...], tuple[float, ...]]
"""Token ids of one chunk, markers and padding included, and the weight of each."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text and, unless it is plain, its chunks for each text encoder."""

    text: str
    chunks: tuple[tuple[TokenWeights, ...], ...] = ()
    """For each chunk, one entry for each encoder."""
    truncated: bool = False
    limited: bool = False
    """Whether a weight is above the heaviest, which it got instead."""

    @property
    def length(self) -> int:
        """How many chunks it takes."""
        return max(1, len(self.chunks))


def fragments(text: str) -> Iterator[tuple[str, float]]:
    """The parts of a text with the weights that it asks for: `(words:1.2)` has 1.2, all else 1."""
    start = 0
    for found in _WEIGHTED.finditer(text):
        if found.start() > start:
            yield text[start : found.start()], 1.0
        yield found[1], float(found[2])
        start = found.end()
    if start < len(text):
        yield text[start:], 1.0


def parse(text: str, tokenizers: Sequence[Any]) -> Prompt:
    """Split a text into chunks for encoders with these tokenizers."""
    columns = []
    truncated = False
    weighted = False
    limited = any(weight > HEAVIEST for _, weight in fragments(text))
    for tokenizer in tokenizers:
        ids: list[int] = []
        weights: list[float] = []
        for fragment, weight in fragments(text):
            found = tokenizer(fragment, add_special_tokens=False).input_ids
            ids += found
            weights += [min(weight, HEAVIEST)] * len(found)
            weighted = weighted or weight != 1
        size = tokenizer.model_max_length - 2
        starts = range(0, max(1, len(ids)), size)
        truncated = truncated or len(starts) > MAX_CHUNKS
        columns.append(
            [
                chunk(tokenizer, ids[at : at + size], weights[at : at + size])
                for at in starts[:MAX_CHUNKS]
            ]
        )
    length = max(len(column) for column in columns)
    if length == 1 and not weighted:
        return Prompt(text)
    for column, tokenizer in zip(columns, tokenizers, strict=True):
        column.extend([chunk(tokenizer)] * (length - len(column)))
    return Prompt(text, tuple(zip(*columns, strict=True)), truncated, limited)


def chunk(tokenizer: Any, ids: Sequence[int] = (), weights: Sequence[float] = ()) -> TokenWeights:
    """One chunk of a tokenizer's length; markers and padding have the weight 1."""
    padding = tokenizer.model_max_length - 2 - len(ids)
    tokens = (
        tokenizer.bos_token_id,
        *ids,
        tokenizer.eos_token_id,
        *[tokenizer.pad_token_id] * padding,
    )
    return tokens, (1.0, *weights, *[1.0] * (padding + 1))
