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
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    PlainSerializer,
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


def _listed(value: Any) -> Any:
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


def _unlisted(values: tuple[Any, ...]) -> Any:
    if not values:
        return None
    return values[0] if len(values) == 1 else list(values)


ONE_OR_MORE: Final = (BeforeValidator(_listed), PlainSerializer(_unlisted))
"""For a tuple: a single value may be given, and a single one is shown, without a list."""
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
            str, handler.generate_schema(_Url), serialization=core_schema.to_string_ser_schema()
        )
    ),
]


class Crop(StrEnum):
    """How a non-square image prompt meets the square image encoder."""

    CENTER = "center"
    PAD = "pad"
    RESIZE = "resize"


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
    preprocess: str = "none"


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
            min_length=1,
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
    image_adapter: Annotated[
        tuple[Name, ...],
        *ONE_OR_MORE,
        Public(),
        Field(
            description="One for each image: the adapter that reads it; `adapter` by default. "
            "Images of one adapter are combined as one prompt, adapters act side by side.",
            max_length=8,
            examples=[["plus", "face"]],
        ),
    ] = ()
    image_mask: Annotated[
        tuple[StoredUpload, ...],
        Files(at_most=8, kind=UploadKind.MASK),
        Public(),
        Field(
            description="None, or one for each image: where it acts is white.",
            max_length=8,
        ),
    ] = ()
    negative_image: Annotated[
        tuple[StoredUpload, ...],
        Files(at_most=4),
        Public(),
        Field(description="What the pictures should not look like.", max_length=4),
    ] = ()
    prompt: Annotated[
        str, Public(), Field(max_length=2000, examples=["a watercolour, soft light"])
    ] = ""
    negative_prompt: Annotated[
        str, Public(), Field(max_length=2000, examples=["blurry, low quality"])
    ] = ""
    lora: Annotated[
        tuple[LoraChoice, ...],
        Public(),
        Field(
            description="LoRAs of the model as name:scale, scale 0 to 2; without a scale it is 1.",
            max_length=4,
            examples=[["pencil:0.8"]],
        ),
    ] = ()
    init_image: Annotated[
        tuple[StoredUpload, ...],
        Files(),
        Public(),
        Field(
            description="Image-to-image: the picture to start from. It is cropped to the output's "
            "aspect ratio."
        ),
    ] = ()
    strength: Annotated[
        float,
        Computed(),
        Public(),
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="With init_image: share of the steps that run; 0.6 by default, and 1 with "
            "a mask.",
            examples=[0.6],
        ),
    ] = 1.0
    mask_image: Annotated[
        tuple[StoredUpload, ...],
        Files(kind=UploadKind.MASK),
        Public(),
        Field(description="With init_image: what is white is repainted, the rest is kept."),
    ] = ()
    mask_blur: Annotated[
        float,
        Public(),
        Field(ge=0, le=64, allow_inf_nan=False, description="Blur of the mask's edge in pixels."),
    ] = 0.0
    control_image: Annotated[
        tuple[StoredUpload, ...],
        Files(at_most=4, kind=UploadKind.MAP, listed=False),
        Public(),
        Field(description="Control maps; resized to the output size.", max_length=4),
    ] = ()
    control_type: Annotated[
        tuple[Name, ...],
        *ONE_OR_MORE,
        OnlyWith("control_image"),
        Computed(),
        Public(),
        Field(
            description="ControlNets or T2I-Adapters of the model, one for all maps or one for "
            "each; the first ControlNet by default.",
            max_length=4,
        ),
    ] = ()
    control_scale: Annotated[
        tuple[Scale, ...],
        *ONE_OR_MORE,
        OnlyWith("control_image", default=1.0),
        Public(),
        Field(description="Strength of the maps; 1 by default.", max_length=4),
    ] = ()
    control_start: Annotated[
        tuple[Share, ...],
        *ONE_OR_MORE,
        OnlyWith("control_image", default=0.0),
        Public(),
        Field(
            description="Part of the denoising at which the maps start to act; 0 by default.",
            max_length=4,
        ),
    ] = ()
    control_end: Annotated[
        tuple[Share, ...],
        *ONE_OR_MORE,
        OnlyWith("control_image", default=1.0),
        Public(),
        Field(
            description="Part of the denoising at which the maps stop acting; 1 by default.",
            max_length=4,
        ),
    ] = ()
    control_preprocess: Annotated[
        tuple[Name, ...],
        *ONE_OR_MORE,
        OnlyWith("control_image", default="none"),
        Public(),
        Field(
            description="How the worker makes each map of the picture that was sent; `none` by "
            "default: it is a map already.",
            max_length=4,
            examples=[["canny"]],
        ),
    ] = ()
    ip_scale: Annotated[
        tuple[Scale, ...],
        *ONE_OR_MORE,
        Computed(),
        Public(),
        Field(
            description="Strength of the image prompts (lambda in the paper), one for all or one "
            "for each adapter in use; 1 without a prompt and 0.5 with one by default.",
            min_length=1,
            max_length=8,
            examples=[[0.5]],
        ),
    ]
    ip_target: Annotated[
        IpTarget,
        Public(),
        Field(description="The blocks in which the image prompts act: what they are used for."),
    ] = IpTarget.ALL
    ip_start: Annotated[
        Share,
        Public(),
        Field(description="Part of the denoising at which the image prompts start to act."),
    ] = 0.0
    ip_end: Annotated[
        Share,
        Public(),
        Field(description="Part of the denoising at which the image prompts stop acting."),
    ] = 1.0
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
    guidance_start: Annotated[
        Share,
        Public(),
        Field(description="Part of the denoising at which guidance starts."),
    ] = 0.0
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
    sigmas: Annotated[
        SigmaSchedule,
        Public(),
        Field(
            description="Spacing of the noise levels; other ones than `default` need a scheduler "
            "that follows them: euler, dpmpp_2m, dpmpp_2m_sde, heun or unipc."
        ),
    ] = SigmaSchedule.DEFAULT
    clip_skip: Annotated[
        int,
        ModelDefault(),
        Public(),
        Field(
            ge=0,
            le=4,
            description="Layers of the text encoder that are left out at its end; the model's by "
            "default.",
            examples=[0],
        ),
    ] = 0
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
        """The image prompts, each with its weight, adapter and mask."""
        count = len(self.image)
        adapters = self.image_adapter or (self.adapter,)
        adapters = adapters * count if len(adapters) == 1 else adapters
        masks = self.image_mask or (None,) * count
        parts = zip(self.image, self.image_weights, adapters, masks, strict=True)
        return tuple(
            ImagePrompt(**dict(one), weight=weight, adapter=adapter, mask=mask)
            for one, weight, adapter, mask in parts
        )

    @property
    def loras(self) -> dict[str, float]:
        """The LoRAs that are asked for, with their scales."""
        pairs = (choice.partition(":") for choice in self.lora)
        return {name: float(scale or 1) for name, _, scale in pairs}

    @property
    def ip_scales(self) -> dict[str, float]:
        """The adapters in use, in order of their first image, and the strength of each."""
        adapters = list(dict.fromkeys(image.adapter for image in self.images))
        scales = self.ip_scale * len(adapters) if len(self.ip_scale) == 1 else self.ip_scale
        return dict(zip(adapters, scales, strict=True))

    @property
    def controls(self) -> tuple[Control, ...]:
        """The control maps with their parameters; a single value stands for all maps."""
        count = len(self.control_image)

        def each(values: tuple[Any, ...], default: Any) -> tuple[Any, ...]:
            values = values or (default,)
            return values * count if len(values) == 1 else values

        return tuple(
            Control(**dict(one), type=name, scale=scale, start=start, end=end, preprocess=made_by)
            for one, name, scale, start, end, made_by in zip(
                self.control_image,
                each(self.control_type, ""),
                each(self.control_scale, 1.0),
                each(self.control_start, 0.0),
                each(self.control_end, 1.0),
                each(self.control_preprocess, "none"),
                strict=True,
            )
        )

    @property
    def guided(self) -> bool:
        """Whether an unconditional row is run beside the conditional one."""
        return self.guidance_scale > 1

    def guided_at(self, step: int) -> bool:
        """Whether it is run at `step` (from 0)."""
        return self.guided and self.guidance_start <= step / self.steps < self.guidance_end

    @property
    def row_steps(self) -> int:
        """UNet rows times steps of the whole job: the unit in which its cost is counted."""
        guided = sum(self.guided_at(step) for step in range(self.steps))
        return self.num_images * (self.steps + guided)
