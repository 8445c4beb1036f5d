"""Every parameter and upload of a request, declared once.

`GenerateRequest` is both the declaration and the record that travels from the API to a worker.
`service/core/schema.py` derives from it: validation of forms and JSON, the parser's limits,
OpenAPI, the command line's options, the job's `input` and the metadata of pictures.
`docs/extending.md` has the steps for a new parameter.
"""

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import (
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    UrlConstraints,
    model_validator,
)
from pydantic_core import core_schema

from service.core.schema import Computed, Files, ModelDefault, OnePerFile, OnlyWith, Public
from service.core.upload_kind import UploadKind

MAX_IMAGES_PER_JOB: Final = 4

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ObjectKey = Annotated[str, Field(pattern=r"^[a-z]+/[0-9a-z-]{1,64}/[0-9a-z.-]{1,64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Scale = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A part of the denoising: 0 is its start, 1 its end."""
PixelSize = Annotated[int, Field(ge=8, multiple_of=8)]
_Url = Annotated[
    AnyUrl, UrlConstraints(max_length=2000, allowed_schemes=["https"], host_required=True)
]
HttpsUrl = Annotated[
    str,
    GetPydanticSchema(
        lambda _source, handler: core_schema.no_info_after_validator_function(
            str, handler.generate_schema(_Url), serialization=core_schema.to_string_ser_schema()
        )
    ),
]


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


class _Record(BaseModel):
    # A record may come from a newer version: fields that this one does not have are ignored.
    model_config = ConfigDict(frozen=True, extra="ignore")


def from_version_1(record: Any) -> Any:
    """The JSON of a request as this release nests it, from what release 0.1.0 stored."""
    if not isinstance(record, dict) or "images" not in record:
        return record
    images, control = record["images"], record.get("control")
    record = {name: record[name] for name in record if name not in ("images", "control")}
    record |= {"image": images, "image_weights": [one.get("weight", 1) for one in images]}
    if control:
        size = {"width": record["width"], "height": record["height"]}
        record["control_image"] = [{"pixels_sha256": control["sha256"], **size, **control}]
        parts = ("type", "scale", "start", "end")
        record |= {f"control_{part}": control[part] for part in parts}
    return record


class StoredUpload(_Record):
    """One upload in object storage, readable as RGB. Width and height in pixels, upright."""

    key: ObjectKey
    sha256: Sha256
    """Of the file as uploaded."""
    pixels_sha256: Sha256
    """Of size and RGB pixels; caches of embeddings are keyed by it."""
    width: int
    height: int


class ImagePrompt(StoredUpload):
    """One image prompt and its weight relative to the others."""

    weight: float = 1.0


class Control(StoredUpload):
    """A ControlNet map, and the part of the denoising in which it acts."""

    type: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


class GenerateRequest(_Record):
    """Every parameter of a job by the names of the form, with all defaults filled in.

    Picture i of a job uses `seed + i`.
    """

    image: Annotated[
        tuple[StoredUpload, ...],
        Files(at_least=1, at_most=8),
        Public(),
        Field(
            description="Image prompts: PNG, JPEG, WebP, AVIF or HEIC. Several are combined as one "
            "prompt.",
            max_length=8,
        ),
    ]
    image_weights: Annotated[
        tuple[Scale, ...],
        OnePerFile("image", default=1.0),
        Public(),
        Field(
            description="One for each image: its weight relative to the others. All 1 by default.",
            examples=[[1.0, 0.5]],
        ),
    ]
    prompt: Annotated[
        str, Public(), Field(max_length=2000, examples=["a watercolour, soft light"])
    ] = ""
    negative_prompt: Annotated[
        str, Public(), Field(max_length=2000, examples=["blurry, low quality"])
    ] = ""
    control_image: Annotated[
        tuple[StoredUpload, ...],
        Files(kind=UploadKind.MAP),
        Public(),
        Field(description="The ControlNet map; resized to the output size."),
    ] = ()
    control_type: Annotated[
        Name | None,
        OnlyWith("control_image"),
        Computed(),
        Public(),
        Field(description="A ControlNet of the model; its first by default."),
    ] = None
    control_scale: Annotated[
        Scale | None,
        OnlyWith("control_image", default=1.0),
        Public(),
        Field(description="Strength of the map; 1 by default."),
    ] = None
    control_start: Annotated[
        Share | None,
        OnlyWith("control_image", default=0.0),
        Public(),
        Field(description="Part of the denoising at which the map starts to act; 0 by default."),
    ] = None
    control_end: Annotated[
        Share | None,
        OnlyWith("control_image", default=1.0),
        Public(),
        Field(description="Part of the denoising at which the map stops acting; 1 by default."),
    ] = None
    ip_scale: Annotated[
        Scale,
        Computed(),
        Public(),
        Field(
            description="Strength of the image prompt (lambda in the paper); 1 without a prompt "
            "and 0.5 with one by default.",
            examples=[0.5],
        ),
    ]
    crop: Annotated[
        Crop,
        Public(),
        Field(description="How a non-square image prompt is fitted to the square image encoder."),
    ] = Crop.CENTER
    model: Annotated[
        Name,
        Computed(),
        Public(),
        Field(description="A name from GET /models.", examples=["sdxl"]),
    ]
    adapter: Annotated[
        Name,
        ModelDefault(),
        Public(),
        Field(description="An adapter of the model.", examples=["plus"]),
    ]
    width: Annotated[
        PixelSize,
        ModelDefault(),
        Public(),
        Field(description="Pixels, within the model's limits.", examples=[1024]),
    ]
    height: Annotated[
        PixelSize,
        ModelDefault(),
        Public(),
        Field(description="Pixels, within the model's limits.", examples=[1024]),
    ]
    steps: Annotated[
        int,
        ModelDefault(),
        Public(),
        Field(ge=1, le=100, description="Denoising steps; 30 by default.", examples=[30]),
    ]
    guidance_scale: Annotated[
        float,
        ModelDefault(),
        Public(),
        Field(
            ge=0,
            le=20,
            allow_inf_nan=False,
            description="The model's by default. At 1 or below, no unconditional row is run.",
            examples=[7.5],
        ),
    ]
    guidance_end: Annotated[
        Share,
        Public(),
        Field(description="Part of the denoising after which guidance is off."),
    ] = 1.0
    scheduler: Annotated[
        SchedulerName,
        ModelDefault(),
        Public(),
        Field(description="The model's by default.", examples=["ddim"]),
    ]
    seed: Annotated[
        int,
        Computed(),
        Public(),
        Field(
            ge=0,
            le=2**32 - 1,
            description="Random by default, and returned. Picture i of a job uses seed + i.",
            examples=[7],
        ),
    ]
    num_images: Annotated[int, Public(), Field(ge=1, le=MAX_IMAGES_PER_JOB)] = 1
    output_format: Annotated[
        OutputFormat,
        Computed(),
        Public(),
        Field(
            description="png by default, or what `Accept` asks for where the answer is the "
            "picture.",
            examples=["png"],
        ),
    ] = OutputFormat.PNG
    deterministic: Annotated[
        bool,
        Public(),
        Field(description="Run alone, so that the same input gives the same bytes on one machine."),
    ] = False
    preview_every: Annotated[
        int | None,
        Public(pictures=False),
        Field(
            ge=0,
            le=100,
            description="Steps between previews in the job's events; 0 for none. The server's "
            "setting by default.",
        ),
    ] = None
    webhook_url: Annotated[
        HttpsUrl | None,
        Public(pictures=False),
        Field(description="Receives the job when it ends; https only."),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, record: Any) -> Any:
        return from_version_1(record)

    @property
    def images(self) -> tuple[ImagePrompt, ...]:
        """The image prompts, each with its weight."""
        pairs = zip(self.image, self.image_weights, strict=True)
        return tuple(ImagePrompt(**dict(one), weight=weight) for one, weight in pairs)

    @property
    def control(self) -> Control | None:
        """The ControlNet map with its parameters."""
        if not self.control_image:
            return None
        return Control(
            **dict(self.control_image[0]),
            type=self.control_type or "",
            scale=1.0 if self.control_scale is None else self.control_scale,
            start=self.control_start or 0.0,
            end=1.0 if self.control_end is None else self.control_end,
        )

    @property
    def guided(self) -> bool:
        """Whether an unconditional row is run beside the conditional one."""
        return self.guidance_scale > 1

    def guided_at(self, step: int) -> bool:
        """Whether it is run at `step` (from 0)."""
        return self.guided and step / self.steps < self.guidance_end

    @property
    def row_steps(self) -> int:
        """UNet rows times steps of the whole job: the unit in which its cost is counted."""
        guided = sum(self.guided_at(step) for step in range(self.steps))
        return self.num_images * (self.steps + guided)
