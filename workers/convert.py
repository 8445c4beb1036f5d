"""`python -m workers.convert FILE`: pickled weights (.bin, .ckpt, .pt) as .safetensors beside them.

A pickle may run any code when it is loaded; torch's restricted loader reads tensors only, and
refuses a file that holds anything else.
"""

import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch
from safetensors.torch import save_file

from service.core.errors import ConfigurationError

USAGE: Final = "usage: python -m workers.convert FILE..."
WRONG: Final = 2


def convert(path: Path) -> Path:
    """Write the tensors of `path` to a .safetensors file beside it, and return that.

    Nested names are joined by dots, as `image_proj.proj.weight` in IP-Adapters. Raises
    `ConfigurationError` where the file holds other things than tensors, or the new one exists.
    """
    target = path.with_suffix(".safetensors")
    if target.exists():
        raise ConfigurationError(f"{target} exists already")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that it refuses right after
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigurationError(f"{path} could not be read as tensors alone: {cause}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tensors = dict(_tensors(content, ""))
    if not tensors:
        raise ConfigurationError(f"{path} holds no tensors")
    # Each on its own: safetensors refuses tensors that share memory.
    save_file({name: one.detach().clone().contiguous() for name, one in tensors.items()}, target)
    return target


def _tensors(content: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(content, torch.Tensor):
        yield prefix, content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _tensors(value, f"{prefix}.{name}" if prefix else str(name))


def main(arguments: list[str]) -> int:
    """Convert each file; the exit status."""
    if not arguments or arguments[0].startswith("-"):
        sys.stderr.write(f"{USAGE}\n")
        return WRONG
    for argument in arguments:
        try:
            sys.stdout.write(f"{convert(Path(argument))}\n")
        except ConfigurationError as error:
            sys.stderr.write(f"{error}\n")
            return WRONG
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
