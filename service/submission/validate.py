"""A request that was checked as a whole: fields against each other, the catalog and the files.

It resolves every default, so that the job leaves nothing open. It knows no HTTP and no pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.core.catalog import Catalog, ModelEntry
from service.core.errors import FieldError
from service.core.params import Control, GenerateRequest, ImagePrompt, OutputFormat, SchedulerName
from service.submission.fields import CONTROL, IMAGE, Fields, invalid

SCALE_ALONE: Final = 1.0
"""Default lambda without text, and with it: the paper's own values (section 4.3)."""
SCALE_WITH_TEXT: Final = 0.5


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """One upload as it lies in storage, normalised. Width and height in pixels."""

    key: str
    sha256: str
    pixels_sha256: str
    width: int
    height: int


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
        elif self._steps > self._scheduler.max_steps:
            message = f"{self._scheduler} makes at most {self._scheduler.max_steps} steps"
            wrong += [FieldError(name, message) for name in _sent(fields, "steps", "scheduler")]
        sides = {"width": fields.width, "height": fields.height}
        outside = [
            FieldError(name, f"{limits.min_size} to {limits.max_size} pixels with this model")
            for name, side in sides.items()
            if side is not None and not limits.min_size <= side <= limits.max_size
        ]
        if not outside and not entry.allows(*self.size):
            message = f"width x height is at most {limits.max_pixels} pixels with this model"
            outside = [FieldError(name, message) for name in _sent(fields, *sides)]
        return wrong + outside

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures to make, in pixels."""
        defaults = self._entry.defaults
        return self._fields.width or defaults.width, self._fields.height or defaults.height

    @property
    def _steps(self) -> int:
        return self._fields.steps or self._entry.defaults.steps

    @property
    def _scheduler(self) -> SchedulerName:
        return self._fields.scheduler or self._entry.defaults.scheduler

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
            steps=self._steps,
            guidance_scale=_or(fields.guidance_scale, defaults.guidance_scale),
            guidance_end=fields.guidance_end,
            scheduler=self._scheduler,
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


def _sent(fields: Fields, *names: str) -> list[str]:
    """Those of the fields that the client gave, and can change."""
    return [name for name in names if getattr(fields, name) is not None]


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
        names = _sent(fields, "control_type", "control_scale", "control_start", "control_end")
        return [FieldError(name, "only with control_image") for name in names]
    if not entry.controlnets:
        return [FieldError(CONTROL, "this model has no ControlNet")]
    wrong = []
    if fields.control_type is not None and fields.control_type not in entry.controlnets:
        wrong.append(FieldError("control_type", f"one of {', '.join(entry.controlnets)}"))
    if _or(fields.control_start, 0.0) >= _or(fields.control_end, 1.0):
        wrong.append(FieldError("control_start", "must be under control_end"))
    return wrong
