"""The text fields of POST /generate: what each may be, and how defaults are resolved.

It knows the contract and the catalog, not HTTP and not pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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

from service.core.catalog import Catalog, ModelEntry
from service.core.errors import FieldError, InvalidField
from service.core.request import (
    Control,
    Crop,
    GenerateRequest,
    ImagePrompt,
    Name,
    OutputFormat,
    SchedulerName,
)

MAX_IMAGES: Final = 8
IMAGE: Final = "image"
CONTROL: Final = "control_image"
SCALE_ALONE: Final = 1.0
"""Default lambda without text, and with it: the paper's own values (section 4.3)."""
SCALE_WITH_TEXT: Final = 0.5


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
    scheduler: SchedulerName | None = Field(default=None, description="The model's by default.")
    seed: int | None = Field(
        default=None,
        ge=0,
        le=2**32 - 1,
        description="Drawn by default, and returned. Picture i of a job uses seed + i.",
    )
    num_images: int = Field(default=1, ge=1, le=4)
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


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """One upload as it lies in storage, normalised. Width and height in pixels."""

    key: str
    sha256: str
    pixels_sha256: str
    width: int
    height: int


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


class Plan:
    """A checked request that waits for its pictures."""

    def __init__(self, fields: Fields, catalog: Catalog, *, images: int, control: bool) -> None:
        """Check fields against each other, the catalog and the number of files.

        Raises `InvalidField` naming all that do not fit.
        """
        self._fields = fields
        self._name = fields.model or catalog.default
        entry = catalog.models.get(self._name)
        if entry is None:
            raise invalid([FieldError("model", f"is not served; see /models: {self._name}")])
        self._entry = entry
        wrong = [
            *_check_images(fields, images),
            *_check_control(fields, entry, control=control),
            *self._check_model(),
        ]
        if wrong:
            raise invalid(wrong)

    def _check_model(self) -> list[FieldError]:
        fields, entry = self._fields, self._entry
        wrong = []
        if fields.adapter is not None and fields.adapter not in entry.adapters:
            wrong.append(FieldError("adapter", f"one of {', '.join(entry.adapters)}"))
        limits = entry.limits
        if fields.steps is not None and fields.steps > limits.max_steps:
            wrong.append(FieldError("steps", f"at most {limits.max_steps} with this model"))
        sides = {"width": fields.width, "height": fields.height}
        outside = [
            FieldError(name, f"{limits.min_size} to {limits.max_size} pixels with this model")
            for name, side in sides.items()
            if side is not None and not limits.min_size <= side <= limits.max_size
        ]
        if not outside and not entry.allows(*self.size):
            sent = [name for name, side in sides.items() if side is not None]
            message = f"width x height is at most {limits.max_pixels} pixels with this model"
            outside = [FieldError(name, message) for name in sent]
        return wrong + outside

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures to make, in pixels."""
        defaults = self._entry.defaults
        return self._fields.width or defaults.width, self._fields.height or defaults.height

    def request(
        self,
        images: Sequence[StoredUpload],
        control: StoredUpload | None,
        *,
        output_format: OutputFormat,
        drawn_seed: int,
    ) -> GenerateRequest:
        """The request with nothing left open."""
        fields, defaults = self._fields, self._entry.defaults
        width, height = self.size
        weights = fields.image_weights or (1.0,) * len(images)
        return GenerateRequest(
            model=self._name,
            adapter=fields.adapter or defaults.adapter,
            images=tuple(
                ImagePrompt(
                    key=image.key,
                    sha256=image.sha256,
                    pixels_sha256=image.pixels_sha256,
                    width=image.width,
                    height=image.height,
                    weight=weight,
                )
                for image, weight in zip(images, weights, strict=True)
            ),
            prompt=fields.prompt,
            negative_prompt=fields.negative_prompt,
            control=None if control is None else self._control(control),
            ip_scale=self._ip_scale,
            crop=fields.crop,
            width=width,
            height=height,
            steps=fields.steps or defaults.steps,
            guidance_scale=_or(fields.guidance_scale, defaults.guidance_scale),
            scheduler=fields.scheduler or defaults.scheduler,
            seed=drawn_seed if fields.seed is None else fields.seed,
            num_images=fields.num_images,
            output_format=output_format,
            deterministic=fields.deterministic,
            webhook_url=str(fields.webhook_url) if fields.webhook_url else None,
        )

    @property
    def _ip_scale(self) -> float:
        return _or(self._fields.ip_scale, SCALE_WITH_TEXT if self._fields.prompt else SCALE_ALONE)

    def _control(self, stored: StoredUpload) -> Control:
        fields = self._fields
        return Control(
            key=stored.key,
            sha256=stored.sha256,
            type=fields.control_type or next(iter(self._entry.controlnets)),
            scale=_or(fields.control_scale, 1.0),
            start=_or(fields.control_start, 0.0),
            end=_or(fields.control_end, 1.0),
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _check_images(fields: Fields, images: int) -> list[FieldError]:
    wrong = []
    if images == 0:
        wrong.append(FieldError(IMAGE, "is required: send 1 to 8 files"))
    weights = fields.image_weights
    if weights is not None and len(weights) != images:
        wrong.append(FieldError("image_weights", f"{len(weights)} given for {images} images"))
    elif weights is not None and images and not any(weights):
        wrong.append(FieldError("image_weights", "at least one must be above 0"))
    return wrong


def _check_control(fields: Fields, entry: ModelEntry, *, control: bool) -> list[FieldError]:
    if not control:
        names = ("control_type", "control_scale", "control_start", "control_end")
        return [
            FieldError(name, "only with control_image")
            for name in names
            if getattr(fields, name) is not None
        ]
    if not entry.controlnets:
        return [FieldError(CONTROL, "this model has no ControlNet")]
    wrong = []
    if fields.control_type is not None and fields.control_type not in entry.controlnets:
        wrong.append(FieldError("control_type", f"one of {', '.join(entry.controlnets)}"))
    if _or(fields.control_start, 0.0) >= _or(fields.control_end, 1.0):
        wrong.append(FieldError("control_start", "must be under control_end"))
    return wrong
