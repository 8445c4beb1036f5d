"""`imageprompt again`: generate a picture once more from the recipe that it carries."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console

from imageprompt import ClientError
from service.cli.generate import run
from service.cli.jobs import Key, Url, connect
from service.core.params import GenerateRequest
from service.core.picture_metadata import read_recipe
from service.core.schema import Files, OnlyWith, marked, marker, parameters

console = Console(stderr=True)


def again(
    picture: Annotated[
        Path,
        typer.Argument(
            help="A picture that this service made: PNG, JPEG or WebP.", exists=True, dir_okay=False
        ),
    ],
    uploads: Annotated[
        list[Path] | None,
        typer.Argument(
            help="The files that it was made from, in any order; they are told by their content.",
            exists=True,
            dir_okay=False,
            metavar="[IMAGE]...",
        ),
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File of the picture; PICTURE-again by default."),
    ] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Generate a picture again from what it says about itself."""
    target = out or picture.with_stem(f"{picture.stem}-again")
    if not target.parent.is_dir():
        raise typer.BadParameter(f"--out: the folder {target.parent} does not exist")
    recipe = _recipe(picture)
    files = _files(recipe, uploads or [])
    with connect(url, key) as client:
        job = run(client, {**files, **fields(recipe)}, label=target.name)
        made = client.picture(job, 0)
    target.write_bytes(made)
    same = "the same bytes" if made == picture.read_bytes() else "other bytes"
    console.print(f"{target}  {same} as {picture.name}", soft_wrap=True)


def _recipe(picture: Path) -> dict[str, Any]:
    try:
        with Image.open(picture, formats=["PNG", "JPEG", "WEBP"]) as image:
            recipe = read_recipe(image)
    except OSError:
        raise ClientError(f"{picture} is not a PNG, JPEG or WebP picture") from None
    if recipe is None:
        raise ClientError(
            f"{picture} carries no recipe: this service did not make it, or it lost its metadata"
        )
    return recipe


def fields(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of a recipe as the form takes them."""
    sent = {}
    for name, field in parameters(GenerateRequest).items():
        value, only = recipe.get(name), marker(field, OnlyWith)
        if value in (None, []) or (only is not None and not recipe.get(only.upload)):
            continue
        sent[name] = _text(value)
    return sent


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _files(recipe: Mapping[str, Any], given: Sequence[Path]) -> dict[str, list[Path]]:
    """The given files by the fields of the form. Raises `ClientError` naming those that lack."""
    known = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in given}
    found: dict[str, list[Path]] = {}
    absent = []
    for name in marked(GenerateRequest, Files):
        value = recipe.get(name) or []
        uploads = value if isinstance(value, list) else [value]
        for upload in uploads:
            path = known.get(upload["sha256"])
            if path is None:
                absent.append(f"{name} of {upload['width']} x {upload['height']} pixels")
            else:
                found.setdefault(name, []).append(path)
    if absent:
        raise ClientError(
            f"the picture was also made from files that were not given: {', '.join(absent)}; "
            "give the very files that were uploaded then"
        )
    used = {path for paths in found.values() for path in paths}
    if unused := [path.name for path in given if path not in used]:
        raise ClientError(f"the picture was not made from {', '.join(unused)}")
    return found
