"""Every parameter and upload of a request, declared once.

`GenerateRequest` is both the declaration and the record that travels from the API to a worker.
`service/core/schema.py` derives from it: validation of forms and JSON, the parser's limits,
OpenAPI, the command line's options, the job's `input` and the metadata of pictures.
`docs/extending.md` has the steps for a new parameter.
"""

from typing import Annotated

from pydantic import Field, model_validator

from service.core.param_types import (
    MAX_CONTROL_MAPS,
    MAX_IMAGES_PER_JOB,
    MAX_SEED,
    Control,
    Crop,
    HttpsUrl,
    ImagePrompt,
    IpTarget,
    LoraChoice,
    Name,
    OutputFormat,
    PixelSize,
    Preprocessor,
    Scale,
    SchedulerName,
    Share,
    SigmaSchedule,
    StoredRecord,
    StoredUpload,
    joined,
    read_version_1,
    spread,
)
from service.core.schema import (
    ONE_OR_MORE,
    Computed,
    Files,
    ModelDefault,
    OnePerFile,
    OnlyWith,
    Public,
)
from service.core.upload_types import UploadKind


class GenerateRequest(StoredRecord):
    """Every parameter of a job by the names of the form, with all defaults filled in."""

    image: Annotated[
        tuple[StoredUpload, ...],
        Files(at_least=1, at_most=8),
        Public(),
        Field(
            description="Image prompts: PNG, JPEG, WebP, AVIF or HEIC. Several of one adapter are "
            "combined as one prompt."
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
        OnePerFile("image", one_for_all=True),
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
        Files(at_most=8, kind=UploadKind.MAP),
        Public(),
        Field(description="None, or one for each image: it acts where its mask is white."),
    ] = ()
    negative_image: Annotated[
        tuple[StoredUpload, ...],
        Files(at_most=4),
        Public(),
        Field(description="What the pictures should not look like."),
    ] = ()
    prompt: Annotated[
        str,
        Public(),
        Field(
            max_length=2000,
            description="What to show. A blank text counts as none.",
            examples=["a watercolour, soft light"],
        ),
    ] = ""
    negative_prompt: Annotated[
        str,
        Public(),
        Field(max_length=2000, description="What not to show.", examples=["blurry"]),
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
            description="Image-to-image: the picture to start from. Without width and height, the "
            "output takes its aspect ratio; otherwise it is cropped to fit."
        ),
    ] = ()
    strength: Annotated[
        Share,
        OnlyWith("init_image"),
        Computed(),
        Public(),
        Field(description="Share of the steps, rounded down to whole ones; 0.6, or 1 with a mask."),
    ] = 1.0
    mask_image: Annotated[
        tuple[StoredUpload, ...],
        Files(kind=UploadKind.MASK, only_with="init_image"),
        Public(),
        Field(
            description="Inpainting: what is white is repainted (or transparent, where any of it "
            "is); the rest of init_image is kept."
        ),
    ] = ()
    mask_blur: Annotated[
        float,
        OnlyWith("mask_image", default=0.0),
        Public(),
        Field(
            ge=0,
            le=64,
            allow_inf_nan=False,
            description="Blur of the mask's edge in pixels; 0 by default.",
        ),
    ] = 0.0
    control_image: Annotated[
        tuple[StoredUpload, ...],
        Files(at_most=MAX_CONTROL_MAPS, kind=UploadKind.MAP, always_list=False),
        Public(),
        Field(description="Control maps; resized to the output size."),
    ] = ()
    control_type: Annotated[
        tuple[Name, ...],
        *ONE_OR_MORE,
        OnePerFile("control_image", one_for_all=True),
        Computed(),
        Public(),
        Field(
            description="ControlNets or T2I-Adapters of the model, one for all maps or one for "
            "each; the first ControlNet by default."
        ),
    ] = ()
    control_scale: Annotated[
        tuple[Scale, ...],
        *ONE_OR_MORE,
        OnePerFile("control_image", default=1.0, one_for_all=True),
        Public(),
        Field(description="Strength of the maps; 1 by default."),
    ] = ()
    control_start: Annotated[
        tuple[Share, ...],
        *ONE_OR_MORE,
        OnePerFile("control_image", default=0.0, one_for_all=True),
        Public(),
        Field(description="Part of the denoising at which the maps start to act; 0 by default."),
    ] = ()
    control_end: Annotated[
        tuple[Share, ...],
        *ONE_OR_MORE,
        OnePerFile("control_image", default=1.0, one_for_all=True),
        Public(),
        Field(description="Part of the denoising at which the maps stop acting; 1 by default."),
    ] = ()
    control_preprocess: Annotated[
        tuple[Preprocessor, ...],
        *ONE_OR_MORE,
        OnePerFile("control_image", one_for_all=True),
        Public(),
        Field(
            description="How the worker makes each map of the picture that was sent; `none` by "
            "default: it is a map already."
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
            examples=[0.5],
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
        Name, Computed(), Public(), Field(description="A name from GET /models.", examples=["sdxl"])
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
        Share, Public(), Field(description="Part of the denoising at which guidance starts.")
    ] = 0.0
    guidance_end: Annotated[
        Share, Public(), Field(description="Part of the denoising after which guidance is off.")
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
            le=MAX_SEED,
            description="Random by default. Picture i uses seed + i, in the range as well.",
            examples=[7],
        ),
    ]
    num_images: Annotated[
        int, Public(), Field(ge=1, le=MAX_IMAGES_PER_JOB, description="How many pictures.")
    ] = 1
    output_format: Annotated[
        OutputFormat,
        Computed(),
        Public(),
        Field(description="png by default, or what `Accept` asks for.", examples=["png"]),
    ] = OutputFormat.PNG
    deterministic: Annotated[
        bool,
        Public(),
        Field(description="Run alone, so that the same input gives the same bytes on one machine."),
    ] = False
    preview_every: Annotated[
        int | None,
        Public(pictures=False),
        Field(ge=0, le=100, description="Steps between previews, 0 for none; default: server's."),
    ] = None
    webhook_url: Annotated[
        HttpsUrl | None,
        Public(pictures=False),
        Field(description="Receives the job when it ends; https only."),
    ] = None

    _upgrade = model_validator(mode="before")(read_version_1)

    @property
    def images(self) -> tuple[ImagePrompt, ...]:
        """The image prompts, each with its weight, adapter and mask."""
        return joined(
            ImagePrompt,
            self.image,
            weight=(self.image_weights, 1.0),
            adapter=(self.image_adapter, self.adapter),
            mask=(self.image_mask, None),
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
        return dict(zip(adapters, spread(self.ip_scale, 1.0, len(adapters)), strict=True))

    @property
    def controls(self) -> tuple[Control, ...]:
        """The control maps with their parameters."""
        return joined(
            Control,
            self.control_image,
            type=(self.control_type, ""),
            scale=(self.control_scale, 1.0),
            start=(self.control_start, 0.0),
            end=(self.control_end, 1.0),
            preprocess=(self.control_preprocess, Preprocessor.NONE),
        )

    @property
    def guided(self) -> bool:
        """Whether an unconditional row is run beside the conditional one."""
        return self.guidance_scale > 1

    def guided_at(self, step: int) -> bool:
        """Whether it is run at `step` (from 0)."""
        return self.guided and self.guidance_start <= step / self.steps < self.guidance_end

    @property
    def first_step(self) -> int:
        """The step (from 0) at which a job starts; its init image stands for those before."""
        if not self.init_image:
            return 0
        return self.steps - min(int(self.steps * self.strength), self.steps)

    @property
    def row_steps(self) -> int:
        """UNet rows times steps of the whole job: the unit in which its cost is counted."""
        steps = range(self.first_step, self.steps)
        return self.num_images * (len(steps) + sum(map(self.guided_at, steps)))
