"""Settings: what is wrong is named by its variable, and what is no setting at all is named too."""

import pytest

from service.core.errors import ConfigurationError
from service.core.settings import Settings, load_settings, unknown_variables


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("IMAGEPROMPT_PORT", "80a"),
        ("IMAGEPROMPT_TRUSTED_PROXIES", "10.0.0.0/8, none"),
        ("IMAGEPROMPT_CORS_ORIGINS", "app.example"),
        ("IMAGEPROMPT_CORS_ORIGINS", "http://["),
        ("IMAGEPROMPT_PUBLIC_URL", "https://b\xfccher.example"),
        ("IMAGEPROMPT_PUBLIC_URL", "https://a.example/\xfc"),
        ("IMAGEPROMPT_PUBLIC_URL", "https://a.example/a b"),
        ("IMAGEPROMPT_PUBLIC_URL", "https://a.example:99999"),
        ("IMAGEPROMPT_PUBLIC_URL", "https://a.example:x"),
        ("IMAGEPROMPT_PUBLIC_URL", "https://[::::]"),
        ("IMAGEPROMPT_PUBLIC_URL", "https://[::1"),
        ("IMAGEPROMPT_PUBLIC_URL", "https://@a.example"),
        ("IMAGEPROMPT_STORAGE_PUBLIC_URL", "https://a.example:99999"),
        ("IMAGEPROMPT_BOOTSTRAP_KEY", "secret-that-is-no-key"),
    ],
)
def test_a_wrong_setting_is_named_by_its_variable_without_its_value(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"{variable}: ")
    assert "secret" not in str(caught.value)


def test_a_misspelled_setting_is_named_with_the_nearest_that_exists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv(f"IMAGEPROMPT_{field.upper()}", raising=False)
    for variable in ("SECRETS_DIR", "URL", "KEY", "REDIS_URL"):
        monkeypatch.setenv(f"IMAGEPROMPT_{variable}", "x")
    assert unknown_variables() == []
    monkeypatch.setenv("IMAGEPROMPT_REDIS_ULR", "x")
    monkeypatch.setenv("IMAGEPROMPT_QQQQQQQQQQQQ", "x")
    assert unknown_variables() == [
        "IMAGEPROMPT_QQQQQQQQQQQQ",
        "IMAGEPROMPT_REDIS_ULR (did you mean IMAGEPROMPT_REDIS_URL?)",
    ]
