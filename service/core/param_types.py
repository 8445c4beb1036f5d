"""The types of parameters: ranges, names, choices, and the records of uploads."""

from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar

from pydantic import AnyUrl, BaseModel, ConfigDict, Field, GetPydanticSchema, UrlConstraints
from pydantic_core import core_schema

MAX_IMAGES_PER_JOB: Final = 4
MAX_CONTROL_MAPS: Final = 4
MAX_SEED: Final = 2**32 - 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ObjectKey = Annotated[str, Field(pattern=r"^[a-z]+/[0-9a-z-]{1,64}/[0-9a-z.-]{1,64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Scale = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A part of the denoising: 0 is its start, 1 its end."""


LoraChoice = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(:([01](\.[0-9]{1,6})?|2(\.0{1,6})?))?$")
]
PixelSize = Annotated[int, Field(ge=8, multiple_of=8)]
_Url = Annotated[
    AnyUrl, UrlConstraints(max_length=2000, allowed_schemes=["https"], host_required=True)
]
HttpsUrl = Annotated[
    str,
    GetPydanticSchema(
        lambda _source, handler: core_schema.no_info_after_validator_function(
            str,
            handler.generate_schema(_Url),
            serialization=core_schema.to_string_ser_schema(),
        )
    ),
]


class Crop(StrEnum):
    """How a non-square image prompt meets the square image encoder."""

    CENTER = "center"
    PAD = "pad"
    RESIZE = "resize"


class Preprocessor(StrEnum):
    """How a control map is made from the picture that was sent."""

    NONE = "none"
    CANNY = "canny"
    DEPTH = "depth"


class IpTarget(StrEnum):
    """The blocks of the UNet in which an image prompt acts (InstantStyle, arXiv 2404.02733)."""

    ALL = "all"
    STYLE = "style"
    LAYOUT = "layout"
    STYLE_LAYOUT = "style_layout"


class SchedulerName(StrEnum):
    """The samplers that are served, by the names of the contract."""

    DDIM = "ddim"
    EULER = "euler"
    EULER_A = "euler_a"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    HEUN = "heun"
    UNIPC = "unipc"
    LCM = "lcm"
    TCD = "tcd"

    @property
    def max_steps(self) -> int:
        """Most steps it can make; 50 are diffusers' `original_inference_steps`."""
        return 50 if self in (SchedulerName.LCM, SchedulerName.TCD) else 100

    @property
    def takes_sigmas(self) -> bool:
        """Whether it can follow another schedule of noise levels than its own."""
        return self in (
            SchedulerName.EULER,
            SchedulerName.DPMPP_2M,
            SchedulerName.DPMPP_2M_SDE,
            SchedulerName.HEUN,
            SchedulerName.UNIPC,
        )


class SigmaSchedule(StrEnum):
    """How the noise levels of the steps are spaced; `default` is the model's own way."""

    DEFAULT = "default"
    KARRAS = "karras"
    EXPONENTIAL = "exponential"
    BETA = "beta"


class OutputFormat(StrEnum):
    """The picture formats that are served."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def content_type(self) -> str:
        """The media type, as in RFC 9110."""
        return f"image/{self.value}"


class StoredRecord(BaseModel):
    """Base of what is stored as JSON: read tolerantly and never changed."""

    # A record may come from a newer version: fields that this one does not have are ignored.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StoredUpload(StoredRecord):
    """One upload in object storage, readable as RGB. Width and height in pixels, upright."""

    key: ObjectKey
    sha256: Sha256
    """Of the file as uploaded."""
    pixels_sha256: Sha256
    """Of the file as stored: equal ones have equal pixels, so caches of embeddings are keyed by it.
    Releases before hashed the pixels themselves."""
    width: int
    height: int


class ImagePrompt(StoredUpload):
    """One image prompt: its weight relative to the others, its adapter, and where it acts."""

    weight: float = 1.0
    adapter: str = ""
    mask: StoredUpload | None = None


class Control(StoredUpload):
    """A control map, how it is made, and the part of the denoising in which it acts."""

    type: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    preprocess: Preprocessor = Preprocessor.NONE


Value = TypeVar("Value")
UploadT = TypeVar("UploadT", bound=StoredUpload)


def spread(values: tuple[Value, ...], default: Value, count: int) -> tuple[Value, ...]:
    """One value for each of `count` files: a single one stands for all, none for the default."""
    values = values or (default,)
    return values * count if len(values) == 1 else values


def joined(
    kind: type[UploadT],
    uploads: tuple[StoredUpload, ...],
    **columns: tuple[tuple[Any, ...], Any],
) -> tuple[UploadT, ...]:
    """One record for each upload, with its value of each column; see `spread` for defaults."""
    values = [spread(*column, len(uploads)) for column in columns.values()]
    return tuple(
        kind(**dict(upload), **dict(zip(columns, row, strict=True)))
        for upload, *row in zip(uploads, *values, strict=True)
    )


def read_version_1(record: Any) -> Any:
    """The fields of a request as release 0.1.0 stored it, with nested uploads.

    Such records live for `job_retention_seconds` after an upgrade. Raises `ValueError` where one is
    damaged.
    """
    if not isinstance(record, dict) or "images" not in record:
        return record
    try:
        return _upgraded(record)
    except (AttributeError, KeyError, TypeError):
        raise ValueError("must be as release 0.1.0 stored it") from None


def _upgraded(record: dict[str, Any]) -> dict[str, Any]:
    images, control = record["images"], record.get("control")
    record = {name: record[name] for name in record if name not in ("images", "control")}
    record |= {"image": images, "image_weights": [one.get("weight", 1) for one in images]}
    if control:
        size = {"width": record["width"], "height": record["height"]}
        record["control_image"] = [{"pixels_sha256": control["sha256"], **size, **control}]
        record |= {f"control_{part}": control[part] for part in ("type", "scale", "start", "end")}
    return record
