"""What is derived from a declaration of parameters: forms, JSON, views, metadata, examples.

A declaration is a pydantic model whose fields carry the markers below; the one of this service is
`GenerateRequest` in `service/core/params.py`. Nothing here names a particular parameter.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from service.core.errors import FieldError, InvalidField, MalformedBody
from service.core.upload_kind import UploadKind


@dataclass(frozen=True, slots=True)
class Public:
    """Marks a field that clients may see: in the job's `input` and in its pictures' metadata."""

    pictures: bool = True
    """False keeps it out of pictures, which are passed on to others."""


@dataclass(frozen=True, slots=True)
class Files:
    """Marks an upload field, a tuple of stored uploads: how many files it takes, and what for."""

    at_least: int = 0
    at_most: int = 1
    kind: UploadKind = UploadKind.PICTURE


@dataclass(frozen=True, slots=True)
class ModelDefault:
    """Marks a parameter whose default is the model's: the field of this name in its `defaults`."""


@dataclass(frozen=True, slots=True)
class Computed:
    """Marks a parameter whose default `service/submission/validate.py` computes."""


@dataclass(frozen=True, slots=True)
class OnlyWith:
    """Marks a parameter of an upload: refused without it, and `None` in the record then."""

    upload: str
    default: Any = None


@dataclass(frozen=True, slots=True)
class OnePerFile:
    """Marks a list with one value for each file of an upload."""

    upload: str
    default: Any


Declaration = type[BaseModel]
Marker = TypeVar("Marker", Public, Files, ModelDefault, Computed, OnlyWith, OnePerFile)
_FILLED_IN: Final = (ModelDefault, Computed, OnlyWith, OnePerFile)
_MARKERS: Final = (Public, Files, *_FILLED_IN)


def marker(field: FieldInfo, kind: type[Marker]) -> Marker | None:
    """The marker of this kind that a field carries."""
    return next((one for one in field.metadata if isinstance(one, kind)), None)


def marked(declaration: Declaration, kind: type[Marker]) -> dict[str, Marker]:
    """The names of all fields that carry a marker of this kind, and the marker of each."""
    found = ((name, marker(field, kind)) for name, field in declaration.model_fields.items())
    return {name: one for name, one in found if one is not None}


def parameters(declaration: Declaration) -> dict[str, FieldInfo]:
    """All fields that are not uploads."""
    files = marked(declaration, Files)
    return {name: field for name, field in declaration.model_fields.items() if name not in files}


def is_filled_in(field: FieldInfo) -> bool:
    """Whether a parameter's default depends on the rest of the request."""
    return any(isinstance(one, _FILLED_IN) for one in field.metadata)


def is_list(field: FieldInfo) -> bool:
    """Whether a parameter is a list, which a form sends as comma-separated text."""
    return get_origin(field.annotation) is tuple


@cache
def sent_model(declaration: Declaration, *, strict: bool = False) -> type[BaseModel]:
    """The parameters as a client may send them: each in its range, any of them absent.

    `strict` is for JSON, where a number is not sent as text.
    """
    fields: dict[str, Any] = {}
    for name, field in parameters(declaration).items():
        constraints = [one for one in field.metadata if not isinstance(one, _MARKERS)]
        kind: Any = Annotated[field.annotation, *constraints] if constraints else field.annotation
        if is_list(field):
            kind = Annotated[kind, BeforeValidator(_splitter(field))]
        absent = is_filled_in(field)
        described = Field(
            default=None if absent else field.default,
            description=field.description,
            examples=field.examples,
        )
        fields[name] = (kind | None if absent else kind, described)
    config = ConfigDict(frozen=True, extra="forbid", strict=strict)
    return create_model("Sent", __config__=config, **fields)


def _splitter(field: FieldInfo) -> Callable[[Any], Any]:
    numbers = float in get_args(field.annotation) or any(
        float in get_args(one) for one in get_args(field.annotation)
    )

    def split(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(value)
        if not isinstance(value, str):
            return value
        pieces = tuple(piece.strip() for piece in value.split(","))
        return tuple(map(_number, pieces)) if numbers else pieces

    return split


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def parse_form(declaration: Declaration, texts: Mapping[str, str]) -> BaseModel:
    """Check every text field by itself. Raises `InvalidField` naming all that are wrong."""
    return _checked(lambda: sent_model(declaration).model_validate(texts))


def parse_json(declaration: Declaration, values: Mapping[str, Any]) -> BaseModel:
    """The same for the values of a JSON object; `null` counts as absent."""
    given = json.dumps({name: value for name, value in values.items() if value is not None})
    return _checked(lambda: sent_model(declaration, strict=True).model_validate_json(given))


def _checked(read: Callable[[], BaseModel]) -> BaseModel:
    try:
        return read()
    except ValidationError as error:
        wrong: dict[str, FieldError] = {}  # the first cause of each field is enough
        for cause in error.errors(include_url=False, include_input=False):
            if not cause["loc"]:
                raise MalformedBody("The body holds text that is not valid Unicode") from None
            field, *inner = cause["loc"]
            place = f" (number {inner[0] + 1})" if inner and isinstance(inner[0], int) else ""
            name = str(field)[:100]
            wrong.setdefault(name, FieldError(name, f"{cause['msg']}{place}"))
    raise InvalidField.of(*wrong.values())


def fill_in(
    declaration: Declaration,
    sent: Mapping[str, Any],
    *,
    files: Mapping[str, int],
    model_defaults: BaseModel,
) -> tuple[dict[str, Any], list[FieldError]]:
    """The sent values with all defaults that follow from a marker, and what does not fit.

    `files` has the number of files of each upload. Defaults of `Computed` fields stay `None`.
    """
    values, wrong = dict(sent), []
    for name, field in parameters(declaration).items():
        value, only, each = sent[name], marker(field, OnlyWith), marker(field, OnePerFile)
        if only is not None and not files.get(only.upload):
            if value is not None:
                wrong.append(FieldError(name, f"can only be sent with {only.upload}"))
        elif each is not None:
            count = files.get(each.upload, 0)
            if value is None:
                values[name] = (each.default,) * count
            elif len(value) != count:
                wrong.append(FieldError(name, f"has {len(value)} values for {count} files"))
        elif value is None and only is not None:
            values[name] = only.default
        elif value is None and marker(field, ModelDefault) is not None:
            values[name] = getattr(model_defaults, name)
    wrong += [
        FieldError(name, f"is required: send {limit.at_least} to {limit.at_most} files")
        for name, limit in marked(declaration, Files).items()
        if files.get(name, 0) < limit.at_least
    ]
    return values, wrong


def _public(request: BaseModel, *, pictures: bool) -> Iterator[tuple[str, Any, Files | None]]:
    for name, field in type(request).model_fields.items():
        shown = marker(field, Public)
        if shown is not None and (shown.pictures or not pictures):
            yield name, getattr(request, name), marker(field, Files)


class InputFile(BaseModel):
    """One upload. Width and height in pixels, upright."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="Of the file as uploaded.")]
    width: int
    height: int


def show(request: BaseModel) -> dict[str, Any]:
    """The public fields of a stored request: `input` of the job."""
    shown: dict[str, Any] = {}
    for name, value, files in _public(request, pictures=False):
        if files is None:
            shown[name] = value
            continue
        uploads = [InputFile.model_validate(one, from_attributes=True) for one in value]
        shown[name] = uploads if files.at_most > 1 else next(iter(uploads), None)
    return shown


@cache
def input_model(declaration: Declaration) -> type[BaseModel]:
    """The type of what `show` returns."""
    fields: dict[str, Any] = {}
    for name, field in declaration.model_fields.items():
        files = marker(field, Files)
        if marker(field, Public) is None:
            continue
        if files is None:
            fields[name] = (field.annotation, ...)
        else:
            fields[name] = (list[InputFile] if files.at_most > 1 else InputFile | None, ...)
    docs = "Every parameter of the job by the names of the form, with all defaults filled in."
    return create_model("Input", __doc__=docs, **fields)


def picture_metadata(request: BaseModel) -> dict[str, Any]:
    """What a picture of a stored request may carry, JSON-ready: all that made it.

    Uploads appear by their hashes and sizes, never by their storage keys.
    """
    content = request.model_dump(mode="json")
    found: dict[str, Any] = {}
    for name, _, files in _public(request, pictures=True):
        value = content[name]
        if files is not None:
            value = [{part: one[part] for part in one if part != "key"} for one in value]
            value = value if files.at_most > 1 else next(iter(value), None)
        found[name] = value
    return found


def example_input(declaration: Declaration) -> dict[str, Any]:
    """The `input` of an example job: one image of each required upload, and the defaults."""
    upload = {"sha256": "ab" * 32, "width": 640, "height": 480}
    shown: dict[str, Any] = {}
    for name, field in declaration.model_fields.items():
        files, each = marker(field, Files), marker(field, OnePerFile)
        if marker(field, Public) is None:
            continue
        if files is not None:
            shown[name] = [upload] * files.at_least if files.at_most > 1 else None
        elif each is not None:
            shown[name] = [each.default] * len(shown[each.upload] or ())
        elif field.examples and marker(field, OnlyWith) is None:
            shown[name] = field.examples[0]
        else:
            shown[name] = field.get_default()
    return shown
