"""Checks a request as a whole: parameters against each other, the model and the uploads.

Defaults are filled in here, so that a job's record leaves nothing open.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from service.core.catalog import Catalog, ModelEntry
from service.core.errors import FieldError, InvalidField
from service.core.params import GenerateRequest, StoredUpload
from service.core.schema import Files, fill_in, marked

IP_SCALE_WITHOUT_PROMPT: Final = 1.0
"""Default lambda without a prompt, and with one: the paper's own values (section 4.3)."""
IP_SCALE_WITH_PROMPT: Final = 0.5


@dataclass(frozen=True, slots=True)
class ValidRequest:
    """A checked request whose uploads are not stored yet."""

    values: Mapping[str, Any]

    def with_uploads(self, stored: Mapping[str, Sequence[StoredUpload]]) -> GenerateRequest:
        """The whole request."""
        absent = dict.fromkeys(marked(GenerateRequest, Files), ())
        return GenerateRequest.model_validate({**absent, **self.values, **stored})


def validate(
    sent: BaseModel,
    files: Mapping[str, int],
    catalog: Catalog,
    *,
    image_required: bool = True,
    **computed: Any,
) -> ValidRequest:
    """Check the sent parameters (`service.core.schema.sent_model`) and fill in all defaults.

    `files` has the number of files of each upload, `computed` the defaults that neither the
    request nor the model decides: `seed` and `output_format`. Raises `InvalidField` naming every
    field that is wrong.
    """
    given = dict(sent)
    name = given["model"] or catalog.default
    entry = catalog.models.get(name)
    if entry is None:
        raise InvalidField.of(FieldError("model", f"{name} is not served; see GET /models"))
    values, wrong = fill_in(GenerateRequest, given, files=files, model_defaults=entry.defaults)
    computed |= {
        "model": name,
        "ip_scale": IP_SCALE_WITH_PROMPT if given["prompt"] else IP_SCALE_WITHOUT_PROMPT,
    }
    if files.get("control_image") and entry.controlnets:
        computed["control_type"] = next(iter(entry.controlnets))
    values |= {key: value for key, value in computed.items() if values[key] is None}
    # Every value has been checked by itself; uploads are added when they have been stored.
    request = GenerateRequest.model_construct(**values)
    if not image_required:
        wrong = [error for error in wrong if error.field != "image"]
    for rule in (_images, _control, _adapter, _steps, _size):
        wrong += rule(request, given, files, entry)
    if wrong:
        raise InvalidField.of(*wrong)
    return ValidRequest(values)


Given = Mapping[str, Any]
"""What the client sent; a wrong combination is reported for the fields that it can change."""


def _sent(given: Given, *names: str) -> list[str]:
    return [name for name in names if given[name] is not None]


def _images(
    request: GenerateRequest, _: Given, files: Mapping[str, int], __: ModelEntry
) -> Iterator[FieldError]:
    if files.get("image") == len(request.image_weights) and not any(request.image_weights):
        yield FieldError("image_weights", "at least one must be above 0")


def _control(
    request: GenerateRequest, given: Given, files: Mapping[str, int], entry: ModelEntry
) -> Iterator[FieldError]:
    if not files.get("control_image"):
        return
    if not entry.controlnets:
        yield FieldError("control_image", "this model has no ControlNet")
        return
    if given["control_type"] is not None and given["control_type"] not in entry.controlnets:
        yield FieldError("control_type", f"must be one of {', '.join(entry.controlnets)}")
    if (request.control_start or 0.0) >= (request.control_end or 0.0):
        yield FieldError("control_start", "must be less than control_end")


def _adapter(
    request: GenerateRequest, _: Given, __: Mapping[str, int], entry: ModelEntry
) -> Iterator[FieldError]:
    if request.adapter not in entry.adapters:
        yield FieldError("adapter", f"must be one of {', '.join(entry.adapters)}")


def _steps(
    request: GenerateRequest, given: Given, _: Mapping[str, int], entry: ModelEntry
) -> Iterator[FieldError]:
    most, scheduler = entry.limits.max_steps, request.scheduler
    if request.steps > most:
        yield FieldError("steps", f"must be at most {most} with this model")
    elif request.steps > scheduler.max_steps:
        message = f"{scheduler} supports at most {scheduler.max_steps} steps"
        yield from (FieldError(name, message) for name in _sent(given, "steps", "scheduler"))


def _size(
    request: GenerateRequest, given: Given, _: Mapping[str, int], entry: ModelEntry
) -> Iterator[FieldError]:
    limits, names = entry.limits, _sent(given, "width", "height")
    outside = [name for name in names if not limits.min_size <= given[name] <= limits.max_size]
    for name in outside:
        message = f"must be {limits.min_size} to {limits.max_size} pixels with this model"
        yield FieldError(name, message)
    if not outside and not entry.allows(request.width, request.height):
        message = f"width x height must be at most {limits.max_pixels} pixels with this model"
        yield from (FieldError(name, message) for name in names)
