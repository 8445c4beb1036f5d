"""What a finished picture tells about itself, in the forms that other programs read.

- The recipe: the fields of the form and the revisions of the weights, as one JSON text, from which
  the picture can be made again. PNG: text chunk `imageprompt`; JPEG and WebP: Exif UserComment.
- The same as A1111's generation parameters, which readers of such pictures know. PNG: text chunk
  `parameters`; JPEG and WebP: Exif ImageDescription.
- An XMP packet with IPTC's DigitalSourceType: made by a trained model.

There is no time and no job id in any of it, so that the same request gives the same bytes.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from PIL import ExifTags, Image

PNG_RECIPE: Final = "imageprompt"
PNG_PARAMETERS: Final = "parameters"
PNG_XMP: Final = "XML:com.adobe.xmp"

XMP: Final = (
    '<?xpacket begin="\N{ZERO WIDTH NO-BREAK SPACE}" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    " Iptc4xmpExt:DigitalSourceType="
    '"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
"""XMP specification, part 1, section 7; IPTC Photo Metadata Standard, Digital Source Type."""

_ASCII: Final = b"ASCII\0\0\0"
_UNICODE: Final = b"UNICODE\0"
"""Character codes of a UserComment (Exif 3.0, section 4.6.6, table 9)."""
_MAX_EXIF_BYTES: Final = 65_000
"""Of a JPEG's segment, less what stands around it."""

_SAMPLERS: Final = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
}
_SCHEDULES: Final = {"karras": "Karras", "exponential": "Exponential", "beta": "Beta"}


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The JSON of a recipe, in ASCII, the same for equal recipes."""
    return json.dumps(recipe, separators=(",", ":"), sort_keys=True)


def generation_parameters(recipe: Mapping[str, Any]) -> str:
    """A recipe as A1111 writes its own: prompt, negative prompt, and a line of settings."""
    sampler = str(recipe["scheduler"])
    settings: dict[str, object] = {
        "Steps": recipe["steps"],
        "Sampler": _SAMPLERS.get(sampler, sampler),
    }
    if (schedule := _SCHEDULES.get(str(recipe.get("sigmas")))) is not None:
        settings["Schedule type"] = schedule
    settings |= {
        "CFG scale": _number(recipe["guidance_scale"]),
        "Seed": recipe["seed"],
        "Size": f"{recipe['width']}x{recipe['height']}",
        "Model": recipe["model"],
    }
    if recipe.get("init_image"):
        settings["Denoising strength"] = _number(recipe.get("strength", 1))
    for number, unit in enumerate(_control_units(recipe)):
        content = ", ".join(f"{name}: {_number(value)}" for name, value in unit.items())
        settings[f"ControlNet {number}"] = f'"{content}"'
    lines = [
        str(recipe["prompt"]),
        *([f"Negative prompt: {recipe['negative_prompt']}"] if recipe["negative_prompt"] else ()),
        ", ".join(f"{name}: {value}" for name, value in settings.items()),
    ]
    return "\n".join(lines).replace("\0", "").encode(errors="replace").decode()


def _control_units(recipe: Mapping[str, Any]) -> list[dict[str, object]]:
    """Image prompts and control maps, as the ControlNet extension of A1111 lists them."""
    units: list[dict[str, object]] = []
    if recipe.get("image"):
        units.append(
            {
                "Module": "ip-adapter-auto",
                "Model": recipe["adapter"],
                "Weight": _first(recipe["ip_scale"]),
                "Guidance Start": _first(recipe.get("ip_start", 0)),
                "Guidance End": _first(recipe.get("ip_end", 1)),
            }
        )
    for number, _ in enumerate(_listed(recipe.get("control_image"))):
        units.append(
            {
                "Module": "none",
                "Model": _first(recipe["control_type"], number),
                "Weight": _first(recipe["control_scale"], number),
                "Guidance Start": _first(recipe["control_start"], number),
                "Guidance End": _first(recipe["control_end"], number),
            }
        )
    return units


def _listed(value: object) -> Sequence[object]:
    if value is None:
        return ()
    return value if isinstance(value, (list, tuple)) else (value,)


def _first(value: object, number: int = 0) -> object:
    values = _listed(value)
    return values[min(number, len(values) - 1)] if values else None


def _number(value: object) -> object:
    return f"{value:g}" if isinstance(value, (int, float)) else value


def exif(text: str, description: str) -> bytes:
    """An Exif block for JPEG and WebP: `text` as UserComment, `description` as ImageDescription.

    Both may hold any characters. A description for which a JPEG has no space is left out.
    """
    comment = _ASCII + text.encode() if text.isascii() else _UNICODE + text.encode("utf-16-be")
    block = _tiff(comment, description.encode() + b"\0")
    if len(block) > _MAX_EXIF_BYTES:
        block = _tiff(comment, None)
    return b"Exif\0\0" + block


_Entry = tuple[int, int, bytes]
"""A tag, its type and its value."""
_ASCII_TYPE, _LONG_TYPE, _UNDEFINED_TYPE = 2, 4, 7
_TYPE_BYTES: Final = {_ASCII_TYPE: 1, _LONG_TYPE: 4, _UNDEFINED_TYPE: 1}


def _tiff(comment: bytes, description: bytes | None) -> bytes:
    """A big-endian TIFF header and two directories (Exif 3.0, section 4.6).

    Pillow writes UserComment as BYTE, which other readers refuse; Exif wants UNDEFINED.
    """
    described: list[_Entry] = []
    if description is not None:
        described = [(ExifTags.Base.ImageDescription, _ASCII_TYPE, description)]
    details: list[_Entry] = [
        (ExifTags.Base.ExifVersion, _UNDEFINED_TYPE, b"0232"),
        (ExifTags.Base.UserComment, _UNDEFINED_TYPE, comment),
    ]
    header = b"MM\0*" + struct.pack(">I", 8)
    placeholder: _Entry = (ExifTags.IFD.Exif, _LONG_TYPE, bytes(4))
    start = len(header) + len(_directory([*described, placeholder], 8))
    pointer: _Entry = (ExifTags.IFD.Exif, _LONG_TYPE, struct.pack(">I", start))
    return header + _directory([*described, pointer], 8) + _directory(details, start)


def _directory(entries: Sequence[_Entry], offset: int) -> bytes:
    """An image file directory that begins at `offset`; entries in order of their tags."""
    table, values = struct.pack(">H", len(entries)), b""
    behind = offset + 2 + 12 * len(entries) + 4
    for tag, kind, value in entries:
        table += struct.pack(">HHI", tag, kind, len(value) // _TYPE_BYTES[kind])
        if len(value) <= 4:  # noqa: PLR2004 - such values stand in the entry itself
            table += value.ljust(4, b"\0")
        else:
            table += struct.pack(">I", behind + len(values))
            values += value + b"\0" * (len(value) % 2)
    return table + bytes(4) + values


def read_recipe(image: Image.Image) -> dict[str, Any] | None:
    """The recipe in an opened picture, `None` where it carries none."""
    text = getattr(image, "text", {}).get(PNG_RECIPE)
    if text is None:
        directory = image.getexif().get_ifd(ExifTags.IFD.Exif)
        text = _comment(directory.get(ExifTags.Base.UserComment))
    try:
        recipe = json.loads(text or "")
    except ValueError:
        return None
    return recipe if isinstance(recipe, dict) else None


def _comment(value: object) -> str | None:
    if not isinstance(value, bytes):
        return None
    code, text = value[:8], value[8:]
    if code == _UNICODE:
        return text.decode("utf-16-be", "replace")
    return text.decode("ascii", "replace") if code == _ASCII else None
