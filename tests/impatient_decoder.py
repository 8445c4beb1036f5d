"""A decoder process that never finishes a large picture, and may compute for a second."""

from collections.abc import Callable
from typing import Any

from service.core.upload_types import Picture
from service.submission import decoder_process, images

LARGE_PIXELS = 10**6
_normalise = images.normalise


def _endless(*args: Any, on_size: Callable[[int], None], **options: Any) -> Picture:
    """`normalise`, but what comes after a large picture's size is known has no end."""

    def then_compute(pixels: int) -> None:
        on_size(pixels)
        while pixels > LARGE_PIXELS:
            pass

    return _normalise(*args, on_size=then_compute, **options)


decoder_process.CPU_SECONDS = 1
decoder_process.CPU_SECONDS_A_MEGAPIXEL = 0
images.normalise = _endless  # type: ignore[assignment]

if __name__ == "__main__":
    decoder_process.main()
