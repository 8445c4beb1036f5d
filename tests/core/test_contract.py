"""Settings, catalog and request: what an operator or a client got wrong is said by its name."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.core.catalog import load_catalog
from service.core.errors import ConfigurationError
from service.core.params import GenerateRequest
from service.core.settings import Settings, load_settings
from tests.core.test_transitions import REQUEST

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.parametrize("name", ["shapes", "shapes-fast", "sdxl", "sd15"])
def test_the_shipped_catalogs_are_valid(name: str) -> None:
    catalog = load_catalog(MODELS / f"{name}.yaml")
    entry = catalog.models[catalog.default]
    assert entry.allows(entry.defaults.width, entry.defaults.height)
    assert all(entry.allows(*size) for size in entry.warm_sizes)


def test_folders_are_found_beside_the_file() -> None:
    entry = load_catalog(MODELS / "shapes.yaml").models["shapes"]
    assert entry.base.path == MODELS.resolve() / "shapes"
    assert entry.controlnets["outline"].location == str(
        MODELS.resolve() / "shapes/controlnets/outline"
    )


def shapes() -> dict[str, Any]:
    """The bundled catalog, to be spoiled."""
    return dict(yaml.safe_load((MODELS / "shapes.yaml").read_text()))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda c: c.update(default="nope"), "nope"),
        (lambda c: c["models"]["shapes"].update(typo=1), "typo"),
        (lambda c: c["models"]["shapes"]["defaults"].update(adapter="x"), "defaults.adapter"),
        (lambda c: c["models"]["shapes"]["defaults"].update(width=1024), "limits"),
        (
            lambda c: c["models"]["shapes"]["defaults"].update(scheduler="lcm", steps=51),
            "defaults.steps",
        ),
        (lambda c: c["models"]["shapes"]["base"].update(repo="a/b"), "path"),
        (lambda c: c["models"]["shapes"].update(adapters={}), "adapters"),
        (
            lambda c: c["models"]["shapes"]["adapters"]["plus"].update(block_scales={"mid": 3}),
            "plus.block_scales.mid",
        ),
    ],
)
def test_a_wrong_catalog_is_refused_with_file_and_field(
    spoil: Any, named: str, tmp_path: Path
) -> None:
    content = shapes()
    spoil(content)
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigurationError) as caught:
        load_catalog(path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize("content", ["a: [", "", "[]", "!!python/object/apply:os.getcwd []"])
def test_a_file_that_is_no_catalog_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_catalog(path)
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"models\.yaml"):
        load_catalog(path)


def test_settings_come_from_the_environment_and_from_secret_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEPROMPT_PORT", "1234")
    monkeypatch.setenv("IMAGEPROMPT_REDIS_URL", "redis://plain")
    assert load_settings().port == 1234
    monkeypatch.delenv("IMAGEPROMPT_REDIS_URL")
    (tmp_path / "imageprompt_redis_url").write_text("redis://:secret@host")
    monkeypatch.setenv("IMAGEPROMPT_SECRETS_DIR", str(tmp_path))
    loaded = load_settings()
    assert loaded.redis_url.get_secret_value() == "redis://:secret@host"
    assert "secret@" not in repr(loaded)


def test_a_secret_that_cannot_sign_is_refused() -> None:
    for wrong in ("abcde", "whsec_", "whsec_a!b"):
        with pytest.raises(ValidationError, match="webhook_secret"):
            Settings(webhook_secret=wrong)
    for right in ("whsec_c2VjcmV0", "c2VjcmV0", "c2VjcmU"):
        assert Settings(webhook_secret=right).webhook_secret


def test_a_setting_out_of_range_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEPROMPT_MAX_QUEUED_JOBS", "0")
    with pytest.raises(ValidationError, match="max_queued_jobs"):
        Settings()


@given(
    prompt=st.text(max_size=50),
    steps=st.integers(1, 100),
    guidance=st.floats(0, 20),
    images=st.integers(1, 4),
)
def test_a_request_survives_json(prompt: str, steps: int, guidance: float, images: int) -> None:
    request = REQUEST.model_copy(
        update={"prompt": prompt, "steps": steps, "guidance_scale": guidance, "num_images": images}
    )
    again = GenerateRequest.model_validate_json(request.model_dump_json())
    assert again == request
    assert again.row_steps == steps * images * (2 if guidance > 1 else 1)


@pytest.mark.parametrize(("end", "rows"), [(0, 10), (0.25, 13), (0.3, 13), (1, 20)])
def test_a_negative_row_costs_only_while_guidance_is_on(end: float, rows: int) -> None:
    request = REQUEST.model_copy(
        update={"steps": 10, "guidance_scale": 7.5, "guidance_end": end, "num_images": 1}
    )
    assert request.row_steps == rows


@pytest.mark.parametrize("key", ["../x/y", "uploads/a/../b", "uploads/a/b/c", "/uploads/a/b"])
def test_a_key_cannot_lead_out_of_its_folder(key: str) -> None:
    content = json.loads(REQUEST.model_dump_json())
    content["image"][0]["key"] = key
    with pytest.raises(ValidationError):
        GenerateRequest.model_validate(content)
