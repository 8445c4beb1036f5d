"""Depth maps of pictures, by a transformers depth-estimation model that models.yaml names.

It runs on the CPU, in the threads that read a job's inputs: once a map, beside the engine's steps.
"""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, DepthEstimationPipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES

from service.core.catalog import Source
from service.core.errors import ConfigurationError
from workers.engine.models import hub


@dataclass(frozen=True, slots=True, eq=False)
class DepthEstimator:
    """Implements `base.MapPreprocessor`."""

    pipeline: DepthEstimationPipeline

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The depth of an RGB picture, near is white, as transformers' pipeline draws it."""
        found: Any = self.pipeline(picture)
        depth: Image.Image = found["depth"]
        return depth.convert("RGB")


def load(source: Source) -> DepthEstimator:
    """Load a model and its image processor.

    Raises `ConfigurationError` where it estimates no depth, or a file is missing or damaged.
    """
    hub.check_folder(source, "a depth estimator")
    folder = source.subfolder or ""
    name = hub.name_of(source, folder)
    classes = hub.read_json(source, folder, "config.json").get("architectures") or ["?"]
    if classes[0] not in MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES.values():
        raise ConfigurationError(f"{name} is a {classes[0]}, which estimates no depth")
    model = hub.load(getattr(transformers, classes[0]), source, torch.float32)
    model.requires_grad_(requires_grad=False).eval()
    hub.find(source, folder, "preprocessor_config.json")
    # Pillow's, whatever else is installed: another one gives other values.
    arguments = hub.place_arguments(source) | {"backend": "pil"}
    processor = hub.from_pretrained(AutoImageProcessor, source, arguments)
    return DepthEstimator(
        DepthEstimationPipeline(model=model, image_processor=processor, device="cpu")
    )
