"""What is wrong with a `models.yaml` is said by name, whatever it holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.core.catalog import load_catalog
from service.core.errors import ConfigurationError
from service.core.settings import ROOT

TEXT = (ROOT / "models" / "shapes.yaml").read_text()


def _changed(**changes: Any) -> bytes:
    content = yaml.safe_load(TEXT)
    content["models"]["shapes"] |= changes
    return yaml.safe_dump(content).encode()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (TEXT.encode("utf-16"), "not UTF-8"),
        (TEXT.encode("utf-32"), "not UTF-8"),
        (b"\xff\xfe\0", "not UTF-8"),
        (TEXT.replace("Shapes", "Sh\u00e4pes").encode("latin-1"), "not UTF-8"),
        (b"[" * 20_000, "nested too deeply"),
        (b"a: {" * 3_000, "nested too deeply"),
        (b"\0", "not valid YAML"),
        (b"default: 2020-13-45", "not valid YAML"),
        (b"{[a, b]: c}", "not valid YAML"),
        (b"? {a: b}\n: c", "not valid YAML"),
        (_changed(base={"path": "a\0b"}), r"`path` 'a\\x00b'"),
        (_changed(vae={"path": "a\0b"}), r"`path` 'a\\x00b'"),
        (_changed(base={"path": "~nouser_x/y"}), "`path` '~nouser_x/y'"),
        (_changed(warm_sizes=[[0, 0]]), "warm_sizes: 0 x 0"),
        (_changed(warm_sizes=[[128, 128], [8_000_000, 8]]), "warm_sizes: 8000000 x 8"),
        (_changed(warm_sizes=[[-128, -128]]), "warm_sizes: -128 x -128"),
        (_changed(warm_sizes=[[100, 128]]), "warm_sizes: 100 x 128"),
    ],
)
def test_a_catalog_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, named: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"models\.yaml.*{named}"):
        load_catalog(file)


def _loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [Path.mkdir, _loop])
def test_a_catalog_that_is_no_file_is_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "models.yaml")
    with pytest.raises(ConfigurationError, match=r"models\.yaml cannot be read"):
        load_catalog(tmp_path / "models.yaml")
