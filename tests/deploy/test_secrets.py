"""What the manifests mount under IMAGEPROMPT_SECRETS_DIR reaches the parts that need it."""

import shutil
from pathlib import Path

import pytest

from service.core.errors import ConfigurationError
from service.core.settings import load_settings
from service.core.storage import Storage
from tests.deploy.manifests import K8S


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trial overlay's secret files, as a pod sees them."""
    for path in (K8S / "chart" / "trial" / "secrets").glob("imageprompt_*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setenv("IMAGEPROMPT_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("IMAGEPROMPT_STORAGE_URL", "s3://imageprompt")
    monkeypatch.setenv("IMAGEPROMPT_STORAGE_ENDPOINT", "http://store:8333")
    return tmp_path


def test_the_redis_url_and_the_storage_keys_come_from_files(mounted: Path) -> None:
    settings = load_settings()
    written = (mounted / "imageprompt_redis_url").read_text()
    assert settings.redis_url.get_secret_value() == written
    signed = Storage.from_settings(settings).sign("results/a/0.png")
    key_id = (mounted / "imageprompt_storage_access_key_id").read_text()
    assert f"X-Amz-Credential={key_id}%2F" in signed


def test_no_secret_shows_when_settings_are_printed(mounted: Path) -> None:
    printed = repr(load_settings())
    assert "not-a-secret" in (mounted / "imageprompt_storage_secret_access_key").read_text()
    assert "not-a-secret" not in printed


def test_clients_are_not_sent_to_a_store_that_they_cannot_reach(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mounted.is_dir()
    assert Storage.from_settings(load_settings()).signs
    monkeypatch.setenv("IMAGEPROMPT_STORAGE_PUBLIC", "false")
    assert not Storage.from_settings(load_settings()).signs


def test_half_a_pair_of_keys_is_said_at_the_start(mounted: Path) -> None:
    (mounted / "imageprompt_storage_secret_access_key").unlink()
    with pytest.raises(ConfigurationError, match="belong together"):
        Storage.from_settings(load_settings())
