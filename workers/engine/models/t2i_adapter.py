"""T2I-Adapters (arXiv 2302.08453) for UNets: they run once a job, not once a step."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import T2IAdapter
from PIL import Image
from torch import Tensor

from service.core.catalog import Source
from workers.engine.models import checks, hub


@dataclass(frozen=True, slots=True, eq=False)
class UNetT2IAdapter:
    """Implements `base.T2IAdapter`."""

    model: T2IAdapter

    def preprocess(self, picture: Image.Image, height: int, width: int) -> Tensor:
        """See `base.T2IAdapter`; as diffusers' T2I-Adapter pipelines do it."""
        grey = self.model.config.in_channels == 1
        factor = self.model.downscale_factor
        # Rounded up to what it divides, the features have the sizes of the UNet's levels.
        width, height = (-(-side // factor) * factor for side in (width, height))
        resized = picture.convert("L" if grey else "RGB").resize(
            (width, height), Image.Resampling.LANCZOS
        )
        pixels = np.asarray(resized, dtype=np.float32).reshape(height, width, -1) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1)[None]

    def features(self, picture: Tensor) -> list[Tensor]:
        """See `base.T2IAdapter`."""
        features: list[Tensor] = self.model(picture)
        return features


def load(source: Source, unet: torch.nn.Module, dtype: torch.dtype) -> UNetT2IAdapter:
    """Load a T2I-Adapter. Raises `ConfigurationError` where it does not fit the UNet."""
    name = hub.name_of(source, source.subfolder or "")
    hub.check_folder(source, "a T2I-Adapter")
    model = hub.load(T2IAdapter, source, dtype)
    checks.check_t2i_adapter(model, name, unet)
    return UNetT2IAdapter(model)
