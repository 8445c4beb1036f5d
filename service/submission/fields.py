"""The text fields of POST /generate, each in its range.

How they fit together and with the catalog stands in `service/submission/validate.py`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import (
    AnyUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    UrlConstraints,
    ValidationError,
)

from service.core.errors import FieldError, InvalidField
from service.core.params import (
    MAX_PICTURES,
    Crop,
    Name,
    OutputFormat,
    SchedulerName,
)

MAX_IMAGES: Final = 8
IMAGE: Final = "image"
CONTROL: Final = "control_image"


def _split(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value


Weight = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
WebhookUrl = Annotated[
    AnyUrl, UrlConstraints(max_length=2000, allowed_schemes=["https"], host_required=True)
]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Fields(BaseModel):
    """The text fields of a request, each in its range; absent ones get defaults later."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_weights: Annotated[tuple[Weight, ...], BeforeValidator(_split)] | None = Field(
        default=None,
        description="Comma-separated, one an image: how much each counts beside the others. "
        "All 1 by default.",
        examples=["1,0.5"],
    )
    prompt: str = Field(default="", max_length=2000, examples=["a watercolour, soft light"])
    negative_prompt: str = Field(default="", max_length=2000, examples=["blurry, low quality"])
    control_type: Name | None = Field(
        default=None, description="A ControlNet of the model; its first by default."
    )
    control_scale: Weight | None = Field(default=None, description="1 by default.")
    control_start: Share | None = Field(
        default=None, description="Part of the denoising at which the map sets in; 0 by default."
    )
    control_end: Share | None = Field(
        default=None, description="Part of the denoising at which it stops; 1 by default."
    )
    ip_scale: Weight | None = Field(
        default=None,
        description="Strength of the image prompt (lambda in the paper); "
        "1 without a prompt and 0.5 with one by default.",
    )
    crop: Crop = Field(
        default=Crop.CENTER, description="How a non-square image prompt meets the encoder."
    )
    model: Name | None = Field(default=None, description="A name from GET /models.")
    adapter: Name | None = Field(default=None, description="An adapter of the model.")
    width: int | None = Field(
        default=None, ge=8, multiple_of=8, description="Pixels, within the model's limits."
    )
    height: int | None = Field(
        default=None, ge=8, multiple_of=8, description="Pixels, within the model's limits."
    )
    steps: int | None = Field(default=None, ge=1, le=100, description="30 by default.")
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=20,
        allow_inf_nan=False,
        description="The model's by default; at or under 1 no negative row is run.",
    )
    guidance_end: Share = Field(
        default=1.0, description="Part of the denoising after which guidance is off."
    )
    scheduler: SchedulerName | None = Field(default=None, description="The model's by default.")
    seed: int | None = Field(
        default=None,
        ge=0,
        le=2**32 - 1,
        description="Drawn by default, and returned. Picture i of a job uses seed + i.",
    )
    num_images: int = Field(default=1, ge=1, le=MAX_PICTURES)
    output_format: OutputFormat | None = Field(
        default=None,
        description="png by default, or what `Accept` asks for where the answer is the picture.",
    )
    deterministic: bool = Field(
        default=False, description="Run alone: the same input gives the same bytes on one machine."
    )
    webhook_url: WebhookUrl | None = Field(
        default=None, description="Is sent the job when it ends; https only."
    )


def parse(texts: dict[str, str]) -> Fields:
    """Check every field by itself. Raises `InvalidField` naming all that are wrong."""
    try:
        return Fields.model_validate(texts)
    except ValidationError as error:
        wrong = [_field_error(cause) for cause in error.errors()]
    raise invalid(wrong)


def invalid(errors: Sequence[FieldError]) -> InvalidField:
    """The error that names these fields."""
    return InvalidField(
        "; ".join(f"{error.field}: {error.message}" for error in errors), errors=errors
    )


def _field_error(cause: Any) -> FieldError:
    field, *inner = cause["loc"]
    index = f" (number {inner[0] + 1})" if inner and isinstance(inner[0], int) else ""
    return FieldError(str(field), f"{cause['msg']}{index}")
