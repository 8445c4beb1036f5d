"""Rough small pictures of rows on their way, without the VAE.

A linear map from latents to colours, fitted by least squares against real decodes at warm-up, is
applied to what the row's latents would be without noise. One pixel a latent. The operator chooses
every how many steps they are sent.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from workers.engine.rows import Row, Work


def fit(latents: Sequence[Tensor], pictures: Sequence[Image.Image]) -> Tensor:
    """Fit colours to latents by least squares.

    `latents` are `(1, channels, h, w)` each, `pictures` their decodes. Returns
    `(channels + 1, 3)`: the map and its constant, colours 0 to 1.
    """
    columns = torch.cat([_columns(each) for each in latents])
    colours = torch.cat(
        [
            _colours(picture, each.shape[-2:])
            for picture, each in zip(pictures, latents, strict=True)
        ]
    )
    solved: Tensor = torch.linalg.lstsq(columns, colours).solution
    return solved


def render(colours: Tensor, clean: Tensor) -> Image.Image:
    """Draw `clean` latents, `(1, channels, h, w)`, with a map that `fit` returned."""
    height, width = clean.shape[-2:]
    pixels = (_columns(clean) @ colours).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.view(height, width, 3).numpy())


def without_noise(scheduler: Any, timestep: Tensor, scaled: Tensor, prediction: Tensor) -> Tensor:
    """What a row's latents would be without noise, from the UNet's input and guided output.

    The input of the UNet is variance-preserving for every sampler that is served.
    """
    signal = scheduler.alphas_cumprod[int(timestep)] ** 0.5
    noise = (1 - signal**2) ** 0.5
    kind = scheduler.config.prediction_type
    clean: Tensor
    if kind == "v_prediction":
        clean = signal * scaled - noise * prediction
    elif kind == "sample":
        clean = prediction
    else:
        clean = (scaled - noise * prediction) / signal
    return clean


def _colours(picture: Image.Image, size: torch.Size) -> Tensor:
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(1, picture.height, picture.width, 3).permute(0, 3, 1, 2) / 255
    return _flat(functional.adaptive_avg_pool2d(pixels, (size[0], size[1])))


def _flat(maps: Tensor) -> Tensor:
    return maps[0].flatten(1).transpose(0, 1)


def _columns(latents: Tensor) -> Tensor:
    flat = _flat(latents.float().cpu())
    return torch.cat([flat, torch.ones(len(flat), 1)], dim=1)


class Previews:
    """Draws the first row of a job every so many steps: as its request says, else `every_steps`.

    0 draws none. On CUDA drawing one waits until its step has been computed.
    """

    def __init__(self, every_steps: int) -> None:
        self._every = every_steps
        self._colours: dict[str, Tensor] = {}

    def learn(self, model: str, colours: Tensor) -> None:
        """Use `colours`, as `fit` returned them, for rows of `model`."""
        self._colours[model] = colours

    def before(self, row: Row, model_input: Tensor, prediction: Tensor) -> None:
        """Draw a row if a preview of it is due, before it takes a step.

        `model_input` is what the UNet was given, `prediction` its guided output, both
        `(1, channels, h, w)`.
        """
        wanted = row.work.job.request.preview_every
        every = self._every if wanted is None else wanted
        if not every or row.index != 0 or (row.step + 1) % every != 0:
            return
        if row.work.model.name in self._colours:
            image = self._draw(row, model_input, prediction)
            row.work.preview = (row.step + 1, image)

    def send(self, work: Work) -> None:
        """Send what was drawn for a job."""
        drawn, work.preview = work.preview, None
        if drawn is not None:
            work.listener.on_preview(*drawn)

    def _draw(self, row: Row, model_input: Tensor, prediction: Tensor) -> Image.Image:
        scaled = model_input[:, : prediction.shape[1]].float()
        clean = without_noise(row.scheduler, row.timestep, scaled, prediction)
        return render(self._colours[row.work.model.name], torch.nan_to_num(clean))
