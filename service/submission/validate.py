"""Checks a request as a whole: parameters against each other, the model and the uploads.

Defaults are filled in here, so that a job's record leaves nothing open.
"""

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from service.core.catalog import Catalog, ModelEntry
from service.core.errors import FieldError, InvalidField
from service.core.param_types import MAX_SEED, SigmaSchedule, StoredUpload
from service.core.params import GenerateRequest
from service.core.schema import fill_in

IP_SCALE_WITHOUT_PROMPT: Final = 1.0
"""Default lambda without a prompt, and with one: the paper's own values (section 4.3)."""
IP_SCALE_WITH_PROMPT: Final = 0.5
STRENGTH: Final = 0.6
STRENGTH_WITH_MASK: Final = 1.0
TEXTS: Final = ("prompt", "negative_prompt")
INVISIBLE: Final = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})
"""Unicode's categories of characters that show nothing: control, format, separators."""
_IGNORABLE: Final = (
    *("\u00ad", "\u034f", "\u061c", "\u115f\u1160", "\u17b4\u17b5", "\u180b\u180f"),
    *("\u200b\u200f", "\u202a\u202e", "\u2060\u206f", "\u3164", "\ufe00\ufe0f", "\ufeff"),
    *("\uffa0", "\ufff0\ufff8", "\U0001bca0\U0001bca3", "\U0001d173\U0001d17a"),
    "\U000e0000\U000e0fff",
)
"""The first and last of Unicode's property Default_Ignorable_Code_Point (DerivedCoreProperties)."""
_EMPTY: Final = frozenset("\u2800\U00016fe4\U0001d159")
"""Symbols with an empty glyph: the braille pattern, Khitan's filler, the null notehead."""


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: none, spaces, line ends, what fonts leave out or empty."""
    return all(
        unicodedata.category(one) in INVISIBLE
        or one in _EMPTY
        or any(ends[0] <= one <= ends[-1] for ends in _IGNORABLE)
        for one in text
    )


@dataclass(frozen=True, slots=True)
class ValidRequest:
    """A checked request whose uploads are not stored yet."""

    values: Mapping[str, Any]
    entry: ModelEntry
    has_size: bool
    """Whether the client asked for a width or height."""

    def with_uploads(self, stored: Mapping[str, Sequence[StoredUpload]]) -> GenerateRequest:
        """The whole request; without a size of its own, it has the shape of its init image."""
        values = {"image": (), **self.values, **stored}
        if stored.get("init_image") and not self.has_size:
            values["width"], values["height"] = size_like(stored["init_image"][0], self.entry)
        return GenerateRequest.model_validate(values)


def size_like(picture: StoredUpload, entry: ModelEntry) -> tuple[int, int]:
    """Width and height in pixels with a picture's aspect ratio, and the model's native area.

    Multiples of 8 within the model's limits; a ratio beyond them comes as close as they allow.
    """
    limits, native = entry.limits, entry.defaults.width * entry.defaults.height
    ratio = picture.width / picture.height
    width = min(max(math.sqrt(native * ratio), limits.min_size), limits.max_size)
    height = min(max(width / ratio, limits.min_size), limits.max_size)
    width = min(max(height * ratio, limits.min_size), limits.max_size)
    low, high = -(-limits.min_size // 8) * 8, limits.max_size // 8 * 8
    sides = [min(max(round(side / 8) * 8, low), high) for side in (width, height)]
    while sides[0] * sides[1] > limits.max_pixels:
        sides[sides.index(max(sides))] -= 8
    return sides[0], sides[1]


@dataclass(frozen=True, slots=True)
class _Context:
    """What the rules see. Every value of `request` is right by itself; uploads are missing."""

    request: GenerateRequest
    given: Mapping[str, Any]
    """What the client sent; a wrong combination is reported for the fields that it can change."""
    files: Mapping[str, int]
    entry: ModelEntry

    def sent(self, *names: str) -> list[str]:
        """Those of the fields that the client sent."""
        return [name for name in names if self.given[name] is not None]


def validate(
    sent: BaseModel,
    files: Mapping[str, int],
    catalog: Catalog,
    *,
    requires_images: bool = True,
    **computed: Any,
) -> ValidRequest:
    """Check the sent parameters (`service.core.schema.sent_model`) and fill in all defaults.

    `files` has the number of files of each upload, `computed` the defaults that neither the
    request nor the model decides: `seed` and `output_format`. Without `requires_images`, uploads
    that are required may be missing. Raises `InvalidField` naming every field that is wrong.
    """
    given = dict(sent)
    given |= {text: "" for text in TEXTS if is_blank(given[text])}
    name = given["model"] or catalog.default
    entry = catalog.models.get(name)
    if entry is None:
        raise InvalidField.of(FieldError("model", f"{name} is not served; see GET /models"))
    values, wrong = fill_in(
        GenerateRequest,
        given,
        files=files,
        model_defaults=entry.defaults,
        requires_files=requires_images,
    )
    maps = files.get("control_image", 0)
    computed |= {
        "model": name,
        "ip_scale": (IP_SCALE_WITH_PROMPT if given["prompt"] else IP_SCALE_WITHOUT_PROMPT,),
        "strength": STRENGTH_WITH_MASK if files.get("mask_image") else STRENGTH,
        "control_type": tuple(entry.control_types)[:1] * maps,
    }
    values |= {key: value for key, value in computed.items() if values[key] is None}
    request = GenerateRequest.model_construct(**values)
    context = _Context(request, given, files, entry)
    for rule in _RULES:
        wrong += rule(context)
    if wrong:
        raise InvalidField.of(*wrong)
    has_size = bool(context.sent("width", "height"))
    return ValidRequest(values, entry, has_size)


def _images(context: _Context) -> Iterator[FieldError]:
    request, count = context.request, context.files.get("image", 0)
    if count and len(request.image_weights) == count and not any(request.image_weights):
        yield FieldError("image_weights", "at least one must be above 0")
    masks = context.files.get("image_mask", 0)
    if masks not in (0, count):
        yield FieldError("image_mask", f"{masks} files for {count} images; send one for each")
    adapters = len(set(request.image_adapter)) or 1
    if len(request.ip_scale) not in (1, adapters):
        message = f"has {len(request.ip_scale)} values for {adapters} adapters in use"
        yield FieldError("ip_scale", message)
    if request.ip_start >= request.ip_end:
        yield FieldError("ip_start", "must be less than ip_end")


def _adapters(context: _Context) -> Iterator[FieldError]:
    request, served = context.request, context.entry.adapters
    message = f"must be one of {', '.join(served)}"
    if request.adapter not in served:
        yield FieldError("adapter", message)
    elif not set(request.image_adapter) <= set(served):
        yield FieldError("image_adapter", message)


def _control(context: _Context) -> Iterator[FieldError]:
    request, served = context.request, context.entry.control_types
    if not context.files.get("control_image"):
        return
    if not served:
        yield FieldError("control_image", "this model has no ControlNet")
        return
    if not set(request.control_type) <= set(served):
        yield FieldError("control_type", f"must be one of {', '.join(served)}")
    preprocessors = context.entry.preprocessors
    if not set(request.control_preprocess) <= set(preprocessors):
        message = f"must be one of {', '.join(preprocessors)} with this model"
        yield FieldError("control_preprocess", message)
    windows = zip(request.control_start, request.control_end, strict=True)
    if any(start >= end for start, end in windows):
        yield FieldError("control_start", "must be less than control_end")


def _init_image(context: _Context) -> Iterator[FieldError]:
    request = context.request
    if context.files.get("init_image") and int(request.steps * request.strength) < 1:
        yield FieldError("strength", f"leaves no step of {request.steps}; raise it or steps")


def _guidance(context: _Context) -> Iterator[FieldError]:
    request = context.request
    if request.guidance_start > 0 and request.guidance_start >= request.guidance_end:
        yield FieldError("guidance_start", "must be less than guidance_end")
    if context.files.get("negative_image") and not request.guided:
        yield FieldError("negative_image", "needs guidance: a guidance_scale above 1")


def _loras(context: _Context) -> Iterator[FieldError]:
    request, served = context.request, context.entry.loras
    names = [choice.partition(":")[0] for choice in request.lora]
    if not served and names:
        yield FieldError("lora", "this model has no LoRA")
    elif not set(names) <= set(served):
        yield FieldError("lora", f"must be of {', '.join(served)}")
    elif len(set(names)) < len(names):
        yield FieldError("lora", "names a LoRA more than once")


def _sampler(context: _Context) -> Iterator[FieldError]:
    request, most = context.request, context.entry.limits.max_steps
    scheduler = request.scheduler
    if request.steps > most:
        yield FieldError("steps", f"must be at most {most} with this model")
    elif request.steps > scheduler.max_steps:
        message = f"{scheduler} supports at most {scheduler.max_steps} steps"
        yield from (FieldError(name, message) for name in context.sent("steps", "scheduler"))
    if request.sigmas is not SigmaSchedule.DEFAULT and not scheduler.takes_sigmas:
        yield FieldError("sigmas", f"cannot be {request.sigmas} with the scheduler {scheduler}")


def _seed(context: _Context) -> Iterator[FieldError]:
    """Each picture's seed can be sent again."""
    request = context.request
    last = MAX_SEED - request.num_images + 1
    if request.seed > last:
        message = f"must be at most {last} with {request.num_images} images: each uses one more"
        yield FieldError("seed", message)


def _size(context: _Context) -> Iterator[FieldError]:
    request, given, entry = context.request, context.given, context.entry
    limits, names = entry.limits, context.sent("width", "height")
    outside = [name for name in names if not limits.min_size <= given[name] <= limits.max_size]
    for name in outside:
        message = f"must be {limits.min_size} to {limits.max_size} pixels with this model"
        yield FieldError(name, message)
    if not outside and not entry.allows(request.width, request.height):
        message = f"width x height must be at most {limits.max_pixels} pixels with this model"
        yield from (FieldError(name, message) for name in names)


_RULES: Final = (
    _images,
    _adapters,
    _control,
    _init_image,
    _guidance,
    _loras,
    _sampler,
    _seed,
    _size,
)
