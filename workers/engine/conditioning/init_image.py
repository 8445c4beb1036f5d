"""Image-to-image and inpainting: rows start from a picture, and keep it outside a mask.

The order in which random numbers are drawn is that of diffusers' img2img and inpainting pipelines.
"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.nn import functional

from workers.engine.api import EngineJob
from workers.engine.conditioning.base import Conditioning, Conditions, Preparation, SteeredRow
from workers.engine.device import to_device
from workers.engine.models.base import Model

HALF = 0.5
"""Mask values from here on are repainted."""


@dataclass(frozen=True, slots=True)
class InitInput:
    """The picture as RGB of the output size; with a mask also the mask, L, white is repainted."""

    picture: Image.Image
    mask: Image.Image | None
    blurred: Image.Image | None


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """What a VAE's encoder gives: latents `(1, channels, h, w)` are drawn around `mean`."""

    mean: Tensor
    deviation: Tensor

    def draw(self, generator: torch.Generator) -> Tensor:
        """One sample."""
        noise = randn_tensor(
            self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        drawn: Tensor = self.mean + self.deviation * noise
        return drawn


@dataclass(frozen=True, slots=True, eq=False)
class InitState:
    """A job's picture in latents. `mask` is `(1, 1, h, w)`, 1 is repainted; None without one.

    `pure_noise`: the picture has no part in the first latents. `concatenated`: the network takes
    mask and masked picture as further channels, so that latents are not blended at each step.
    """

    inputs: InitInput | None
    latents: Distribution
    masked: Distribution
    mask: Tensor | None
    pure_noise: bool
    concatenated: bool


@dataclass(frozen=True, slots=True, eq=False)
class KeptPicture:
    """A picture that a row keeps outside `mask`: its latents and the noise that they are given."""

    latents: Tensor
    noise: Tensor
    mask: Tensor


class InitImage(Conditioning):
    """The picture that rows start from."""

    name = "init_image"

    def gather(self, job: EngineJob, model: Model) -> InitInput | None:  # noqa: ARG002 (a hook)
        """Read picture and mask and fit them to the output size."""
        request = job.request
        if not request.init_image:
            return None
        size = (request.width, request.height)
        picture = _fitted(job.read(request.init_image[0].key), size)
        if not request.mask_image:
            return InitInput(picture, None, None)
        mask = _fitted(job.read(request.mask_image[0].key), size).convert("L")
        blurred = mask.filter(ImageFilter.GaussianBlur(request.mask_blur))
        return InitInput(picture, mask, blurred if request.mask_blur else mask)

    def prepare(self, job: Preparation, gathered: InitInput | None) -> InitState | None:
        """Encode the picture, and the picture without what is repainted."""
        model = job.model
        concatenated = model.input_channels != model.latent_channels
        if gathered is None and not concatenated:
            return None
        height, width = job.size
        pixels = torch.zeros(1, 3, height, width)
        mask = torch.ones(1, 1, height, width)
        if gathered is not None:
            processor = VaeImageProcessor(vae_scale_factor=model.scale_factor)
            pixels = processor.preprocess(gathered.picture)
            if gathered.blurred is not None:
                mask = _binary(gathered.blurred)
                if not mask.any():
                    job.warn(
                        "mask-without-white",
                        "`mask_image` is white or transparent nowhere, so nothing was repainted",
                    )
        has_mask = gathered is not None and gathered.mask is not None
        latents = Distribution(*model.encode(to_device(pixels, model.device)))
        masked = latents
        if has_mask or concatenated:
            masked = Distribution(*model.encode(to_device(pixels * (mask < HALF), model.device)))
        small = functional.interpolate(mask, size=latents.mean.shape[-2:])
        return InitState(
            inputs=gathered,
            latents=latents,
            masked=masked,
            mask=to_device(small, model.device, model.dtype) if has_mask or concatenated else None,
            pure_noise=gathered is None or (has_mask and job.request.strength == 1),
            concatenated=concatenated,
        )

    def start(self, row: SteeredRow) -> None:
        """Set a row's first latents and what it keeps of the picture."""
        own: InitState | None = row.conditions.states[self.name]
        if own is None:
            return
        drawn = None
        if not (own.concatenated and own.pure_noise):
            drawn = own.latents.draw(row.generator)
        noise = randn_tensor(
            own.latents.mean.shape,
            generator=row.generator,
            device=own.latents.mean.device,
            dtype=own.latents.mean.dtype,
        )
        if own.pure_noise or drawn is None:
            row.latents = noise.float() * row.scheduler.init_noise_sigma
        else:
            row.latents = row.add_noise(drawn, noise).float()
        if own.mask is None:
            return
        masked = own.masked.draw(row.generator)
        if own.concatenated:
            row.extra_channels = torch.cat([own.mask, masked], dim=1)
        elif drawn is not None:
            row.kept[self.name] = KeptPicture(drawn, noise, own.mask)

    def after_step(self, row: SteeredRow) -> None:
        """Put the picture back where it is not repainted, as noisy as the row is now."""
        own: KeptPicture | None = row.kept.get(self.name)
        if own is None:
            return
        latents = own.latents if row.done else row.add_noise(own.latents, own.noise)
        row.latents = (1 - own.mask) * latents + own.mask * row.latents

    def finish(self, conditions: Conditions, picture: Image.Image) -> Image.Image:
        """Paste what was repainted into the original, with the mask's blurred edge."""
        own: InitState | None = conditions.states[self.name]
        if own is None or own.inputs is None or own.inputs.blurred is None:
            return picture
        return Image.composite(picture, own.inputs.picture, own.inputs.blurred)


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of a picture at the output size, whatever its aspect ratio."""
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def _binary(mask: Image.Image) -> Tensor:
    """A mask as `(1, 1, height, width)` of 0 and 1."""
    values = torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255)
    return (values >= HALF).float()[None, None]
