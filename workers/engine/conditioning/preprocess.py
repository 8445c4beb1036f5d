"""Control maps made by the worker from ordinary pictures.

A new kind is a function here, or a network of the model, and a line in `preprocessors`.
"""

from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image

from service.core.param_types import Preprocessor
from workers.engine.models.base import MapPreprocessor, Model

CANNY_LOW, CANNY_HIGH = 100, 200
"""Thresholds of the hysteresis, as in diffusers' guides to ControlNet."""


def canny(picture: Image.Image) -> Image.Image:
    """White edges on black (J. Canny, 1986), as OpenCV finds them."""
    edges = cv2.Canny(np.asarray(picture), CANNY_LOW, CANNY_HIGH)
    return Image.fromarray(np.asarray(edges, dtype=np.uint8)).convert("RGB")


def preprocessors(model: Model) -> Mapping[str, MapPreprocessor]:
    """By the names of `control_preprocess`; each takes and returns RGB of the output size."""
    found: dict[str, MapPreprocessor] = {Preprocessor.CANNY: canny}
    if model.depth_estimator is not None:
        found[Preprocessor.DEPTH] = model.depth_estimator
    return found
