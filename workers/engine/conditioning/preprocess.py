"""Control maps made by the worker from ordinary pictures.

A new kind is a function here and a line in `PREPROCESSORS`.
"""

from collections.abc import Callable, Mapping
from typing import Final

import cv2
import numpy as np
from PIL import Image

CANNY_LOW, CANNY_HIGH = 100, 200
"""Thresholds of the hysteresis, as in diffusers' guides to ControlNet."""


def canny(picture: Image.Image) -> Image.Image:
    """White edges on black (J. Canny, 1986), as OpenCV finds them."""
    edges = cv2.Canny(np.asarray(picture), CANNY_LOW, CANNY_HIGH)
    return Image.fromarray(np.asarray(edges, dtype=np.uint8)).convert("RGB")


PREPROCESSORS: Final[Mapping[str, Callable[[Image.Image], Image.Image]]] = {"canny": canny}
"""By the names of `control_preprocess`; each takes and returns RGB of the output size."""
