"""What is derived from a declaration of parameters: forms, JSON, views, metadata, examples.

A declaration is a pydantic model whose fields carry the markers below; the one of this service is
`GenerateRequest` in `service/core/params.py`. Nothing here names a particular parameter.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    create_model,
)
from pydantic.fields import FieldInfo

from service.core.errors import FieldError, InvalidField, MalformedBody, reason
from service.core.upload_types import UploadKind


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
    only_with: str | None = None
    """Another upload, without which this one is refused."""
    always_list: bool = True
    """False shows a single file without a list."""

    @property
    def shown_as_list(self) -> bool:
        """Whether the job's `input` has a list even of a single file."""
        return self.always_list and self.at_most > 1


@dataclass(frozen=True, slots=True)
class ModelDefault:
    """Marks a parameter whose default is the model's: the field of this name in its `defaults`."""


@dataclass(frozen=True, slots=True)
class Computed:
    """Marks a parameter whose default `service/submission/validate.py` computes."""


@dataclass(frozen=True, slots=True)
class OnlyWith:
    """Marks a parameter of an upload: refused without it; the record has its own default then."""

    upload: str
    default: Any = None


@dataclass(frozen=True, slots=True)
class OnePerFile:
    """Marks a list with one value for each file of an upload, and refused without any."""

    upload: str
    default: Any = None
    """Of each file. With `None`, the list is `Computed`, or empty where it was not sent."""
    one_for_all: bool = False
    """Whether a single value may stand for all files."""


@dataclass(frozen=True, slots=True)
class OneOrMore:
    """Marks a list of which a single value is sent and shown without a list."""


def _listed(value: Any) -> Any:
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


def _unlisted(values: tuple[Any, ...]) -> Any:
    if not values:
        return None
    return values[0] if len(values) == 1 else list(values)


ONE_OR_MORE: Final = (OneOrMore(), BeforeValidator(_listed), PlainSerializer(_unlisted))
"""Annotates a tuple as `OneOrMore`."""

Declaration = type[BaseModel]
Marker = TypeVar("Marker", Public, Files, ModelDefault, Computed, OnlyWith, OnePerFile, OneOrMore)
_FILLED_IN: Final = (ModelDefault, Computed, OnlyWith, OnePerFile)
_MARKERS: Final = (Public, Files, OneOrMore, *_FILLED_IN)


def marker(field: FieldInfo, kind: type[Marker]) -> Marker | None:
    """The marker of this kind that a field carries."""
    return next((one for one in field.metadata if isinstance(one, kind)), None)


@cache
def marked(declaration: Declaration, kind: type[Marker]) -> Mapping[str, Marker]:
    """The names of all fields that carry a marker of this kind, and the marker of each."""
    found = ((name, marker(field, kind)) for name, field in declaration.model_fields.items())
    return MappingProxyType({name: one for name, one in found if one is not None})


@cache
def parameters(declaration: Declaration) -> Mapping[str, FieldInfo]:
    """All fields that are not uploads."""
    files = marked(declaration, Files)
    return MappingProxyType(
        {name: field for name, field in declaration.model_fields.items() if name not in files}
    )


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
        # Lengths first: behind a validator they would not be those of the list.
        constraints.sort(key=lambda one: isinstance(one, BeforeValidator | PlainSerializer))
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
            wrong.setdefault(name, FieldError(name, f"{reason(cause)}{place}"))
    raise InvalidField.of(*wrong.values())


def values_of(declaration: Declaration, sent: BaseModel) -> dict[str, Any]:
    """What was sent of the parameters of `declaration`, in a model that has others beside them."""
    return {
        name: value
        for name in parameters(declaration)
        if name in sent.model_fields_set and (value := getattr(sent, name)) is not None
    }


def fill_in(
    declaration: Declaration,
    sent: Mapping[str, Any],
    *,
    files: Mapping[str, int],
    model_defaults: BaseModel,
    requires_files: bool = True,
) -> tuple[dict[str, Any], list[FieldError]]:
    """The sent values with all defaults that follow from a marker, and what does not fit.

    `files` has the number of files of each upload; with `requires_files`, all that are required
    must be there. Defaults of `Computed` fields stay `None`.
    """
    values, wrong = dict(sent), list(_wrong_files(declaration, files))
    if requires_files:
        wrong += _missing_files(declaration, files)
    with_upload, per_file = marked(declaration, OnlyWith), marked(declaration, OnePerFile)
    all_computed, of_model = marked(declaration, Computed), marked(declaration, ModelDefault)
    for name, field in parameters(declaration).items():
        value, only, each = sent[name], with_upload.get(name), per_file.get(name)
        upload = only.upload if only else each.upload if each else None
        computed = name in all_computed
        if upload is not None and not files.get(upload):
            values[name] = field.get_default() if only else ()
            if value is not None:
                wrong.append(FieldError(name, f"can only be sent with {upload}"))
        elif each is not None:
            values[name], message = _for_each_file(each, value, files[each.upload])
            if value is None and computed:
                values[name] = None
            if message:
                wrong.append(FieldError(name, message))
        elif value is None and only is not None and not computed:
            values[name] = only.default
        elif value is None and name in of_model:
            values[name] = getattr(model_defaults, name)
    return values, wrong


def _for_each_file(
    each: OnePerFile, value: tuple[Any, ...] | None, count: int
) -> tuple[tuple[Any, ...], str]:
    """The values for `count` files, and what is wrong with those that were sent."""
    if value is not None and len(value) == 1 and each.one_for_all:
        return value * count, ""
    if value is not None and len(value) == count:
        return value, ""
    if value is None:
        return () if each.default is None else (each.default,) * count, ""
    return (value * count)[:count], f"has {len(value)} values for {count} files"


def _wrong_files(declaration: Declaration, files: Mapping[str, int]) -> Iterator[FieldError]:
    for name, limit in marked(declaration, Files).items():
        if files.get(name) and limit.only_with is not None and not files.get(limit.only_with):
            yield FieldError(name, f"can only be sent with {limit.only_with}")


def _missing_files(declaration: Declaration, files: Mapping[str, int]) -> Iterator[FieldError]:
    for name, limit in marked(declaration, Files).items():
        if files.get(name, 0) < limit.at_least:
            message = f"is required: send {limit.at_least} to {limit.at_most} files"
            yield FieldError(name, message)


class InputFile(BaseModel):
    """One upload. Width and height in pixels, upright."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="Of the file as uploaded.")]
    width: int
    height: int


def show(request: BaseModel) -> dict[str, Any]:
    """The public fields of a stored request, JSON-ready: `input` of the job."""
    shown = _public(request, pictures=False)
    for name, files in marked(type(request), Files).items():
        if name in shown:
            uploads = [{part: one[part] for part in InputFile.model_fields} for one in shown[name]]
            shown[name] = uploads if files.shown_as_list else _unlisted(tuple(uploads))
    return shown


def picture_metadata(request: BaseModel) -> dict[str, Any]:
    """What a picture of a stored request may carry, JSON-ready: all that made it.

    Uploads appear by their hashes and sizes, never by their storage keys.
    """
    found = _public(request, pictures=True)
    for name, files in marked(type(request), Files).items():
        if name in found:
            uploads = [{part: one[part] for part in one if part != "key"} for one in found[name]]
            found[name] = uploads if files.shown_as_list else _unlisted(tuple(uploads))
    return found


def _public(request: BaseModel, *, pictures: bool) -> dict[str, Any]:
    return request.model_dump(mode="json", include=_public_names(type(request), pictures))


@cache
def _public_names(declaration: Declaration, pictures: bool) -> set[str]:  # noqa: FBT001 (part of a cache's key)
    return {
        name
        for name, shown in marked(declaration, Public).items()
        if shown.pictures or not pictures
    }


@cache
def input_model(declaration: Declaration) -> type[BaseModel]:
    """The type of what `show` returns."""
    fields: dict[str, Any] = {}
    for name, field in declaration.model_fields.items():
        files, item = marker(field, Files), field.annotation
        if marker(field, Public) is None:
            continue
        if files is not None:
            item = InputFile
        if files is not None and files.shown_as_list:
            fields[name] = (list[InputFile], ...)
        elif files is not None and files.at_most == 1:
            fields[name] = (InputFile | None, ...)
        elif files is not None or marker(field, OneOrMore) is not None:
            item = item if files is not None else get_args(field.annotation)[0]
            fields[name] = (item | list[item] | None, ...)  # type: ignore[valid-type]  # it is one
        else:
            fields[name] = (item, ...)
    docs = "Every parameter of the job by the names of the form, with all defaults filled in."
    return create_model("Input", __doc__=docs, **fields)


def example_input(declaration: Declaration) -> dict[str, Any]:
    """The `input` of an example job: one image of each required upload, and the defaults."""
    upload = {"sha256": "ab" * 32, "width": 640, "height": 480}
    shown: dict[str, Any] = {}
    for name, field in declaration.model_fields.items():
        files, each = marker(field, Files), marker(field, OnePerFile)
        if marker(field, Public) is None:
            continue
        if files is not None:
            shown[name] = [upload] * files.at_least if files.shown_as_list else None
        elif each is not None:
            values = [each.default] * len(shown[each.upload] or ())
            values = [] if each.default is None else values
            is_one = marker(field, OneOrMore) is not None
            shown[name] = _unlisted(tuple(values)) if is_one else values
        elif field.examples and marker(field, OnlyWith) is None and field.is_required():
            shown[name] = field.examples[0]
        else:
            shown[name] = field.get_default()
    return shown
