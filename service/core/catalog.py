"""`models.yaml`: which models are served, where their files are, what they allow.

Read by the API (names, limits, defaults) and by workers (files). It loads no weights.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from service.core.errors import ConfigurationError, reason
from service.core.param_types import IpTarget, Name, Preprocessor, SchedulerName


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Strict):
    """A local folder (`path`, relative to the yaml file) or a hub repository at a revision."""

    path: Path | None = None
    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    revision: str | None = None
    subfolder: str | None = None
    variant: str | None = None
    """`fp16` where the weight files carry it in their names."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.repo is None):
            raise ValueError("give either `path` (a local folder) or `repo` (a hub id)")
        return self

    @property
    def location(self) -> str:
        """What diffusers' `from_pretrained` takes as its first argument."""
        return str(self.path) if self.path is not None else str(self.repo)


BlockScale = Annotated[float, Field(ge=0, le=2)]


class BlockScales(_Strict):
    """How much an adapter acts in each block of the UNet; a request's `ip_scale` multiplies it.

    As the dictionary that diffusers' `set_ip_adapter_scale` takes, one value a block or one a
    transformer in it; what is not named is 0. `{up: {block_0: [0, 1, 0]}}` is InstantStyle's style
    (arXiv 2404.02733), with `{down: {block_2: [0, 1]}}` beside it the layout as well.
    """

    down: BlockScale | dict[str, BlockScale | list[BlockScale]] = 0.0
    mid: BlockScale = 0.0
    up: BlockScale | dict[str, BlockScale | list[BlockScale]] = 0.0


class WeightsFile(Source):
    """One file of weights in the folder or repository."""

    weight_name: str


class Checkpoint(WeightsFile):
    """A whole base in one `.safetensors` file of the original layout, as people share them."""

    config: Source
    """A base in diffusers' layout of the same family; its settings and tokenizers are taken."""


def _base_kind(value: Any) -> str:
    named = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "file" if "weight_name" in named else "folder"


Base = Annotated[
    Annotated[Checkpoint, Tag("file")] | Annotated[Source, Tag("folder")], Discriminator(_base_kind)
]
"""A folder or repository in diffusers' layout, or one file."""


class Adapter(WeightsFile):
    """One IP-Adapter weight file and the image encoder that it was trained with."""

    image_encoder: str
    """Folder of the encoder: relative to `subfolder`, or to the repository if it has a slash."""
    block_scales: BlockScales | None = None
    """Without them it acts in every block alike."""


class ControlNetSource(Source):
    """One ControlNet, or one type of map that a union ControlNet reads."""

    control_mode: Annotated[int, Field(ge=0)] | None = None
    """Of a union: the number of the type among those that it was trained on."""


class Lora(WeightsFile):
    """One LoRA file, in kohya's or diffusers' key format."""


class FusedLora(Lora):
    """A LoRA that is added to the base's weights at load, as few-step models need it."""

    scale: Annotated[float, Field(ge=0, le=2)] = 1.0


class SchedulerConfig(_Strict):
    """Settings of the base's scheduler that are other than in its `scheduler_config.json`."""

    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None
    """Few-step models need `trailing`."""
    rescale_betas_zero_snr: bool | None = None


class Limits(_Strict):
    """What a request may ask of a model. Sizes in pixels."""

    min_size: Annotated[int, Field(ge=8, multiple_of=8)]
    max_size: Annotated[int, Field(ge=8, multiple_of=8)]
    max_pixels: Annotated[int, Field(gt=0)]
    """Largest width x height."""
    max_steps: Annotated[int, Field(ge=1, le=100)] = 100


class Defaults(_Strict):
    """What a request gets where it is silent."""

    width: Annotated[int, Field(ge=8, multiple_of=8)]
    height: Annotated[int, Field(ge=8, multiple_of=8)]
    adapter: Name
    steps: Annotated[int, Field(ge=1, le=100)] = 30
    guidance_scale: Annotated[float, Field(ge=0, le=20)] = 7.5
    scheduler: SchedulerName = SchedulerName.DDIM
    clip_skip: Annotated[int, Field(ge=0, le=4)] = 0


class ModelEntry(_Strict):
    """One served model: its base, its adapters and its ControlNets."""

    title: str
    family: Name = "sdxl"
    """Which kind of model it is: a name of `workers/engine/models`."""
    base: Base
    vae: Source | None = None
    scheduler_config: SchedulerConfig = SchedulerConfig()
    adapters: Annotated[dict[Name, Adapter], Field(min_length=1)]
    controlnets: dict[Name, ControlNetSource] = {}
    t2i_adapters: dict[Name, Source] = {}
    """Light alternatives to ControlNets; a request's `control_type` names either."""
    depth_estimator: Source | None = None
    """A depth-estimation model of transformers, which makes maps with `control_preprocess`."""
    loras: dict[Name, Lora] = {}
    """LoRAs that a request may ask for."""
    fused_loras: tuple[FusedLora, ...] = ()
    """LoRAs that are always in force."""
    ip_targets: dict[IpTarget, BlockScales] = {}
    """The blocks of an `ip_target`, where they are others than in the family's published models."""
    limits: Limits
    defaults: Defaults
    warm_sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) of the shape classes that are warmed; the default size always is."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.defaults.adapter not in self.adapters:
            raise ValueError(f"defaults.adapter {self.defaults.adapter!r} is not under adapters")
        if self.defaults.steps > self.limits.max_steps:
            raise ValueError("defaults.steps is above limits.max_steps")
        if self.defaults.steps > self.defaults.scheduler.max_steps:
            raise ValueError("defaults.steps is more than defaults.scheduler can make")
        if not self.allows(self.defaults.width, self.defaults.height):
            raise ValueError("the default size is outside the limits")
        for width, height in self.warm_sizes:
            if width % 8 or height % 8 or not self.allows(width, height):
                raise ValueError(
                    f"warm_sizes: {width} x {height} is outside the limits, or no multiple of 8"
                )
        return self

    @property
    def control_types(self) -> tuple[str, ...]:
        """What a request's `control_type` may name; ControlNets come first."""
        return (*self.controlnets, *self.t2i_adapters)

    @property
    def preprocessors(self) -> tuple[Preprocessor, ...]:
        """What a request's `control_preprocess` may name."""
        estimates_depth = self.depth_estimator is not None
        return tuple(
            kind for kind in Preprocessor if estimates_depth or kind is not Preprocessor.DEPTH
        )

    def parts(self) -> dict[str, Source]:
        """All that is loaded, by name.

        `base`, `base/config` for a base in one file, `vae`, `depth`, `adapter/NAME`, `lora/NAME`,
        `control/NAME` for what a `control_type` names, and `base+1` for the first fused LoRA.
        """
        parts: dict[str, Source] = {"base": self.base}
        if isinstance(self.base, Checkpoint):
            parts["base/config"] = self.base.config
        if self.vae is not None:
            parts["vae"] = self.vae
        if self.depth_estimator is not None:
            parts["depth"] = self.depth_estimator
        parts |= {f"adapter/{name}": adapter for name, adapter in self.adapters.items()}
        for controls in (self.t2i_adapters, self.controlnets):
            parts |= {f"control/{name}": control for name, control in controls.items()}
        parts |= {f"lora/{name}": lora for name, lora in self.loras.items()}
        return parts | {f"base+{number}": lora for number, lora in enumerate(self.fused_loras, 1)}

    def allows(self, width: int, height: int) -> bool:
        """Whether a picture of this size (pixels) may be asked for."""
        limits = self.limits
        inside = all(limits.min_size <= side <= limits.max_size for side in (width, height))
        return inside and width * height <= limits.max_pixels


class Catalog(_Strict):
    """All served models and the one a request gets by default."""

    default: Name
    models: Annotated[dict[Name, ModelEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _default_is_served(self) -> Self:
        if self.default not in self.models:
            raise ValueError(f"default {self.default!r} is not under models")
        return self


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a name that is given twice in one mapping, of which YAML's loaders keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 (PyYAML's signature)
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:merge" and first.setdefault(key.value, line) != line:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"{key.value} is named twice, in lines {first[key.value]} and {line}",
                )
        return super().construct_mapping(node, deep=deep)


def load_catalog(path: Path) -> Catalog:
    """Read and check a `models.yaml`; relative folders in it are resolved against its own.

    Raises `ConfigurationError` with the file and the field that is wrong.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise ConfigurationError(f"IMAGEPROMPT_MODELS names {path}, which does not exist") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8: {error}") from None
    except RecursionError:
        raise ConfigurationError(f"{path} is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:  # ValueError of dates, and the like
        raise ConfigurationError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} is empty, or no mapping with `default` and `models`")
    try:
        catalog = Catalog.model_validate(content)
    except ValidationError as error:
        causes = "; ".join(
            f"{'.'.join(map(str, cause['loc']))}: {reason(cause)}".removeprefix(": ")
            for cause in error.errors()
        )
        raise ConfigurationError(f"{path}: {causes}") from None
    return _resolve(catalog, path.resolve().parent)


def _resolve(catalog: Catalog, folder: Path) -> Catalog:
    def absolute(value: Any) -> Any:
        match value:
            case Source():
                update = {field: absolute(one) for field, one in value}
                if value.path is not None:
                    update["path"] = _place(folder, value.path)
                return value.model_copy(update=update)
            case dict():
                return {key: absolute(one) for key, one in value.items()}
            case tuple():
                return tuple(map(absolute, value))
            case _:
                return value

    models = {
        name: entry.model_copy(update={field: absolute(value) for field, value in entry})
        for name, entry in catalog.models.items()
    }
    return catalog.model_copy(update={"models": models})


def _place(folder: Path, path: Path) -> Path:
    try:
        return (folder / path.expanduser()).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # NUL; a user who does not exist; a loop
        raise ConfigurationError(f"models.yaml: `path` {str(path)!r}: {error}") from None
