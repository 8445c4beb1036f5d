"""Every sentence the bundled model is trained on, and the vocabulary they are made of.

Sentences are numbered, so that embeddings of all of them can be computed once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from training.world import BACKGROUND_NAMES, COLOUR_NAMES, FILLS, SHAPES

#: In place of an attribute: the sentence leaves it out.
LEFT_OUT: Final = -1
#: Where in a full caption ("a striped red star on a navy background" behind the first marker) the
#: text encoders' output is what image tokens say at first: its end, which has read all of it.
SPOKEN: Final = (4, 7, 8, 9)
SPOKEN_PLUS: Final = (2, 3, 4, 5, 6, 7, 8, 9)


def caption(shape: int, colour: int, fill: int, background: int) -> str:
    """Write one sentence; an attribute of `LEFT_OUT` is left out.

    All four give "a striped red star on a navy background", none of them "a shape", and the
    background alone "a shape on a navy background".
    """
    words = [
        FILLS[fill] if fill >= 0 else "",
        COLOUR_NAMES[colour] if colour >= 0 else "",
        SHAPES[shape] if shape >= 0 else "shape",
    ]
    noun = " ".join(word for word in words if word)
    article = "an" if noun[0] in "aeiou" else "a"
    end = f" on a {BACKGROUND_NAMES[background]} background" if background >= 0 else ""
    return f"{article} {noun}{end}"


def setting(background: int) -> str:
    """Write the text that only sets the background: "on a navy background"."""
    return f"on a {BACKGROUND_NAMES[background]} background"


def number(shape: int, colour: int, fill: int, background: int) -> int:
    """Give the place in `SENTENCES` of the caption of these attributes."""
    place = (shape + 1) * (len(COLOUR_NAMES) + 1) + colour + 1
    place = place * (len(FILLS) + 1) + fill + 1
    return place * (len(BACKGROUND_NAMES) + 1) + background + 1


def _every() -> Iterator[str]:
    for shape in range(-1, len(SHAPES)):
        for colour in range(-1, len(COLOUR_NAMES)):
            for fill in range(-1, len(FILLS)):
                for background in range(-1, len(BACKGROUND_NAMES)):
                    yield caption(shape, colour, fill, background)
    yield from (setting(background) for background in range(len(BACKGROUND_NAMES)))
    yield ""


#: All sentences: captions in the order of `number`, then the settings, then the empty one.
SENTENCES: Final = tuple(_every())
EMPTY: Final = len(SENTENCES) - 1
FIRST_SETTING: Final = EMPTY - len(BACKGROUND_NAMES)
WORDS: Final = tuple(sorted({word for sentence in SENTENCES for word in sentence.split()}))
