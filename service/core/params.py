"""A validated generation request, as it travels from the API to a worker.

Frozen and JSON both ways. It holds the keys of stored objects, never pixels.
"""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

MAX_PICTURES: Final = 4
"""Of one job."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ObjectKey = Annotated[str, Field(pattern=r"^[a-z]+/[0-9a-z-]{1,64}/[0-9a-z.-]{1,64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Crop(StrEnum):
    """How a non-square image prompt meets the square image encoder."""

    CENTER = "center"
    PAD = "pad"
    RESIZE = "resize"


class SchedulerName(StrEnum):
    """The samplers that are served, by the names of the contract."""

    DDIM = "ddim"
    EULER = "euler"
    DPMPP_2M = "dpmpp_2m"
    UNIPC = "unipc"
    LCM = "lcm"

    @property
    def max_steps(self) -> int:
        """Most steps it can make; those of LCM are diffusers' `original_inference_steps`."""
        return 50 if self is SchedulerName.LCM else 100


class OutputFormat(StrEnum):
    """The picture formats that are served."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def content_type(self) -> str:
        """The media type, as in RFC 9110."""
        return f"image/{self.value}"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImagePrompt(_Frozen):
    """One image prompt: a stored RGB PNG and how much it counts beside the others."""

    key: ObjectKey
    sha256: Sha256
    """Of the bytes as uploaded."""
    pixels_sha256: Sha256
    """Of size and normalised RGB pixels; the embedding cache is keyed by it."""
    width: int
    height: int
    weight: Annotated[float, Field(ge=0, le=2)] = 1.0


class Control(_Frozen):
    """The ControlNet map and the part of the denoising in which it acts."""

    key: ObjectKey
    sha256: Sha256
    type: Name
    scale: Annotated[float, Field(ge=0, le=2)] = 1.0
    start: Annotated[float, Field(ge=0, le=1)] = 0.0
    end: Annotated[float, Field(ge=0, le=1)] = 1.0


class GenerateRequest(_Frozen):
    """Every parameter of a job, resolved: nothing is left to a default.

    `width` and `height` are pixels, `ip_scale` is the paper's lambda (section 3.2.3),
    picture i of the job uses `seed + i`.
    """

    model: Name
    adapter: Name
    images: Annotated[tuple[ImagePrompt, ...], Field(min_length=1, max_length=8)]
    prompt: Annotated[str, Field(max_length=2000)] = ""
    negative_prompt: Annotated[str, Field(max_length=2000)] = ""
    control: Control | None = None
    ip_scale: Annotated[float, Field(ge=0, le=2)]
    crop: Crop = Crop.CENTER
    width: Annotated[int, Field(ge=8, multiple_of=8)]
    height: Annotated[int, Field(ge=8, multiple_of=8)]
    steps: Annotated[int, Field(ge=1, le=100)]
    guidance_scale: Annotated[float, Field(ge=0, le=20)]
    guidance_end: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Part of the denoising after which guidance is off; 1 keeps it on throughout."""
    scheduler: SchedulerName
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    num_images: Annotated[int, Field(ge=1, le=MAX_PICTURES)] = 1
    output_format: OutputFormat = OutputFormat.PNG
    deterministic: bool = False
    webhook_url: str | None = None

    @property
    def guided(self) -> bool:
        """Whether a negative row is run beside the positive one."""
        return self.guidance_scale > 1

    def guided_at(self, step: int) -> bool:
        """Whether it is run at `step` (from 0)."""
        return self.guided and step / self.steps < self.guidance_end

    @property
    def row_steps(self) -> int:
        """UNet rows times steps of the whole job: the unit in which its cost is counted."""
        guided = sum(self.guided_at(step) for step in range(self.steps))
        return self.num_images * (self.steps + guided)
