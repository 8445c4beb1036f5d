"""Model files that do not fit together are found at start-up, and both are named."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from bench.engine.plain import Plain
from service.core.catalog import (
    Adapter,
    BlockScales,
    Catalog,
    ControlNetSource,
    Source,
    load_catalog,
)
from service.core.errors import ConfigurationError
from service.core.param_types import IpTarget
from service.core.settings import ROOT, AttentionBackend, Device
from tests.engine.conftest import Stepper, job, read, request
from workers.engine.api import Options
from workers.engine.engine import load_engine
from workers.engine.models import hub
from workers.weights import revisions

Change = Callable[[Path], None]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def load(catalog: Catalog, folder: Path, **changes: object) -> None:
    """Load the catalog's model from `folder`."""
    entry = catalog.models["tiny"]
    adapters = {
        name: adapter.model_copy(update={"path": folder})
        for name, adapter in entry.adapters.items()
    }
    entry = entry.model_copy(
        update={
            "base": Source(path=folder),
            "adapters": adapters,
            "controlnets": {"outline": ControlNetSource(path=folder / "controlnets" / "outline")},
            **changes,
        }
    )
    moved = catalog.model_copy(update={"models": {"tiny": entry}})
    load_engine(moved, Options(), device=Device.CPU)


def weights(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of an adapter file."""
    path = folder / "adapters" / name
    tensors = load_file(path)
    change(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def test_an_encoder_of_another_width_is_named_with_the_adapters_file(
    catalog: Catalog, folder: Path
) -> None:
    """The commonest mistake: the bigG encoder with a ViT-H adapter."""
    encoder = folder / "adapters" / "image_encoder"
    config = CLIPVisionConfig(**json.loads((encoder / "config.json").read_text()))
    config.projection_dim *= 2
    CLIPVisionModelWithProjection(config).save_pretrained(encoder)
    with pytest.raises(ConfigurationError, match=r"image_encoder .*ip-adapter\.safetensors"):
        load(catalog, folder)


def test_hidden_states_of_another_width_are_found_for_plus(catalog: Catalog, folder: Path) -> None:
    """The Plus adapter reads another output of the encoder than the base one."""
    weights(folder, "ip-adapter-plus.safetensors", _widen("image_proj.proj_in.weight"))
    with pytest.raises(ConfigurationError, match=r"image_encoder .*ip-adapter-plus\.safetensors"):
        load(catalog, folder)


def _widen(key: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key] = torch.cat([tensors[key]] * 2, dim=1)

    return change


def _shorten(tensors: dict[str, torch.Tensor]) -> None:
    key = next(key for key in tensors if key.endswith("to_k_ip.weight"))
    tensors[key] = tensors[key][:, :-1]


def _drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(key for key in tensors if key.endswith("to_v_ip.weight"))]


@pytest.mark.parametrize("change", [_shorten, _drop])
def test_an_adapter_of_another_base_model_is_named_with_the_unet(
    catalog: Catalog, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    """As with SD 1.5's adapter on SDXL."""
    weights(folder, "ip-adapter.safetensors", change)
    with pytest.raises(ConfigurationError, match=r"ip-adapter\.safetensors .*UNet .*unet"):
        load(catalog, folder)


def test_an_adapter_of_a_kind_that_is_not_served_is_refused(catalog: Catalog, folder: Path) -> None:
    """FaceID adapters, for example."""
    weights(folder, "ip-adapter.safetensors", lambda tensors: tensors.clear())
    with pytest.raises(ConfigurationError, match=r"base, Plus, full"):
        load(catalog, folder)


@pytest.mark.parametrize(
    ("scales", "named"),
    [
        ({"up": {"block_7": 1}}, "block_7"),
        ({"down": {"block_0": 1}}, "block_0"),  # it has no cross-attention
        ({"up": {"block_0": [1, 1, 1]}}, "Expected 2"),
    ],
)
def test_block_scales_that_the_unet_has_no_blocks_for_are_named_with_the_adapters_file(
    catalog: Catalog, folder: Path, scales: dict[str, object], named: str
) -> None:
    """diffusers would take the unknown ones for nothing."""
    adapter = catalog.models["tiny"].adapters["base"]
    update = {"path": folder, "block_scales": BlockScales.model_validate(scales)}
    adapters = {"base": adapter.model_copy(update=update)}
    with pytest.raises(
        ConfigurationError, match=rf"block_scales.*ip-adapter\.safetensors.*{named}"
    ):
        load(catalog, folder, adapters=adapters)


def test_a_pickled_adapter_is_refused(catalog: Catalog, folder: Path) -> None:
    """Only safetensors are read."""
    adapter = catalog.models["tiny"].adapters["base"]
    pickled = {"base": adapter.model_copy(update={"path": folder, "weight_name": "a.bin"})}
    with pytest.raises(ConfigurationError, match=r"a\.bin is not a .*workers\.convert"):
        load(catalog, folder, adapters=pickled)


def test_pickled_weights_of_the_base_are_refused(catalog: Catalog, folder: Path) -> None:
    """A folder with .bin files only is as good as empty."""
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(unet), unet.with_suffix(".bin"))
    unet.unlink()
    with pytest.raises(
        ConfigurationError, match=r"unet/diffusion_pytorch_model\.safetensors does not"
    ):
        load(catalog, folder)


def test_a_controlnet_of_another_base_model_is_named_with_the_unet(
    catalog: Catalog, folder: Path
) -> None:
    """Its residuals would not fit."""
    path = folder / "controlnets" / "outline" / "config.json"
    config = json.loads(path.read_text())
    config["cross_attention_dim"] *= 2
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="outline"):
        load(catalog, folder)


def test_a_vae_of_another_model_is_named_with_the_unet(
    catalog: Catalog, folder: Path, tmp_path: Path
) -> None:
    """Sixteen latent channels are another family's."""
    AutoencoderKL(latent_channels=16, block_out_channels=(32,)).save_pretrained(tmp_path / "vae")
    with pytest.raises(
        ConfigurationError, match=r"vae has 16 latent channels, but UNet .*unet gives 4"
    ):
        load(catalog, folder, vae=Source(path=tmp_path / "vae"))


def test_a_unet_that_is_not_sdxls_is_refused(catalog: Catalog, folder: Path) -> None:
    """SD 1.5 has no added time ids."""
    UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
    ).save_pretrained(folder / "unet")
    with pytest.raises(ConfigurationError, match="not SDXL-shaped"):
        load(catalog, folder)


def _remove(*names: str) -> Change:
    return lambda folder: (folder.joinpath(*names)).unlink()


@pytest.mark.parametrize(
    ("remove", "named"),
    [
        (_remove("model_index.json"), "model_index.json"),
        (_remove("adapters", "ip-adapter-plus.safetensors"), "ip-adapter-plus.safetensors"),
        (_remove("adapters", "image_encoder", "config.json"), "image_encoder/config.json"),
        (_remove("controlnets", "outline", "diffusion_pytorch_model.safetensors"), "outline"),
        (_remove("unet", "diffusion_pytorch_model.safetensors"), "unet/diffusion_pytorch_model"),
    ],
    ids=["index", "adapter", "encoder", "controlnet", "unet"],
)
def test_a_missing_file_is_named(
    catalog: Catalog, folder: Path, remove: Change, named: str
) -> None:
    """The message says which file of which folder."""
    remove(folder)
    with pytest.raises(ConfigurationError, match=named):
        load(catalog, folder)


def test_a_missing_folder_is_named(catalog: Catalog, tmp_path: Path) -> None:
    """As when the bundled model has not been made yet."""
    with pytest.raises(ConfigurationError, match="nowhere"):
        load(catalog, tmp_path / "nowhere")


def test_a_hub_file_that_is_not_in_the_cache_is_named_offline(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """HF_HUB_OFFLINE is kept to, and the message names repository, revision and file."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    base = Source(repo="nobody/nothing", revision="main")
    with pytest.raises(ConfigurationError, match=r"nobody/nothing@main/model_index\.json"):
        load(catalog, tmp_path, base=base)


def test_the_encoder_of_an_adapter_lies_where_diffusers_looks_for_it() -> None:
    """A bare name is a folder beside the weights; one with a slash starts at the repository."""
    common = {"repo": "h94/IP-Adapter", "subfolder": "sdxl_models", "weight_name": "a.safetensors"}
    beside = Adapter(**common, image_encoder="image_encoder")
    elsewhere = Adapter(**common, image_encoder="models/image_encoder")
    assert hub.encoder_source(beside).subfolder == "sdxl_models/image_encoder"
    assert hub.encoder_source(elsewhere).subfolder == "models/image_encoder"


def test_a_variant_and_a_revision_reach_the_loaders() -> None:
    """As in models/sdxl.yaml."""
    source = Source(repo="a/b", revision="main", variant="fp16")
    arguments = hub.loader_arguments(source)
    assert arguments == {"use_safetensors": True, "revision": "main", "variant": "fp16"}


def test_xformers_is_refused_where_it_cannot_run(catalog: Catalog) -> None:
    """On a CPU there is SDPA only."""
    with pytest.raises(ConfigurationError, match="xformers"):
        load_engine(catalog, Options(), device=Device.CPU, attention=AttentionBackend.XFORMERS)


def test_a_model_may_name_the_blocks_of_style_itself(catalog: Catalog) -> None:
    blocks = {IpTarget.STYLE: BlockScales(up={"block_0": 0.5})}
    entry = catalog.models["tiny"].model_copy(update={"ip_targets": blocks})
    changed = catalog.model_copy(update={"models": {"tiny": entry}})
    for served, wanted in ((catalog, {0.0, 1.0}), (changed, {0.0, 0.5})):
        engine = load_engine(served, Options(), device=Device.CPU)
        assert set(engine.models["tiny"].adapters["base"].scales[IpTarget.STYLE]) == wanted


def test_a_small_controlnet_without_attention_in_its_middle_equals_diffusers(
    catalog: Catalog, tmp_path: Path
) -> None:
    """The published small ones of SDXL are built so."""
    entry = catalog.models["tiny"]
    whole = ControlNetModel.from_pretrained(entry.controlnets["outline"].location)
    torch.manual_seed(0)
    small = ControlNetModel.from_config({**whole.config, "mid_block_type": "UNetMidBlock2D"})
    for weight in small.parameters():
        weight.data.add_(0.02 * torch.randn_like(weight))
    small.save_pretrained(tmp_path / "small")
    entry = entry.model_copy(
        update={"controlnets": {"outline": ControlNetSource(path=tmp_path / "small")}}
    )
    changed = Catalog(default="tiny", models={"tiny": entry})
    engine = load_engine(changed, Options(threads=1), device=Device.CPU)
    stepper, wanted = Stepper(engine), request(control={})
    stepper.run(job(wanted))
    theirs = Plain(entry, torch.device("cpu")).pictures(wanted, read)
    assert np.abs(stepper.decoded("job") - theirs).max() <= 1e-4
    engine.stop()


@pytest.mark.parametrize("kind", [None, "UNetMidBlock2D"])
def test_a_unet_without_attention_in_its_middle_is_refused(
    catalog: Catalog, folder: Path, kind: str | None
) -> None:
    """As some distilled SDXL models have it."""
    whole = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet = UNet2DConditionModel.from_config({**whole.config, "mid_block_type": kind})
    unet.save_pretrained(folder / "unet")
    with pytest.raises(ConfigurationError, match=r"unet has no middle block with cross-attention"):
        load(catalog, folder)


def test_an_adapter_of_eight_tokens_is_refused(catalog: Catalog, folder: Path) -> None:
    """The number is in no file; diffusers' loader takes four of each."""

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("weight", "bias"):
            tensors[f"image_proj.proj.{part}"] = torch.cat([tensors[f"image_proj.proj.{part}"]] * 2)

    weights(folder, "ip-adapter.safetensors", widen)
    with pytest.raises(ConfigurationError, match=r"ip-adapter\.safetensors makes 8 tokens"):
        load(catalog, folder)


@pytest.mark.parametrize(("file", "models"), [("sdxl.yaml", 6), ("sd15.yaml", 4)])
def test_the_examples_in_comments_are_valid(file: str, models: int, tmp_path: Path) -> None:
    text = (ROOT / "models" / file).read_text()
    (tmp_path / file).write_text(re.sub("^# (?=  )", "", text, flags=re.MULTILINE))
    catalog = load_catalog(tmp_path / file)
    assert len(catalog.models) == models
    for name, entry in catalog.models.items():
        few = entry.defaults.steps < 10
        assert few == bool(entry.fused_loras or name == "turbo")
        spacing = entry.scheduler_config.timestep_spacing
        assert (spacing == "trailing") == (few and name != "lcm")


@pytest.mark.parametrize("error", [IndexError("tuple index"), RecursionError(), KeyError("a")])
def test_whatever_a_loader_raises_names_its_model(catalog: Catalog, error: Exception) -> None:
    """So that the worker ends with status 2, and without a traceback."""

    def fail(*_: object, **__: object) -> Any:
        raise error

    with pytest.raises(ConfigurationError, match=r"model tiny of models\.yaml"):
        load_engine(catalog, Options(), device=Device.CPU, families={"sdxl": fail})


def test_weights_that_cannot_be_read_are_named(catalog: Catalog, folder: Path) -> None:
    entry = catalog.models["tiny"]
    adapter = entry.adapters["base"].model_copy(update={"path": folder, "weight_name": "none"})
    with pytest.raises(ConfigurationError, match=r"none cannot be read"):
        revisions(entry.model_copy(update={"adapters": {"base": adapter}}))
