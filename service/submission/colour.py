"""Colour conversion of uploads to sRGB, by what a file says about its colours.

A description that is broken, or made for another kind of pixels, is passed over for the next one.
"""

import io
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from PIL import Image, ImageCms
from PIL.ImageCms import Intent, PyCMSError

_SPACES: Final = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}
"""The ICC name of the colour space that a mode needs."""
_SAME: Final = 2
"""Levels of 255 by which a profile may differ from sRGB and still count as sRGB."""
_PROBE_SIDE: Final = 9
_CACHED: Final = 16
_SRGB_PRIMARIES: Final = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_D65: Final = (0.3127, 0.3290)
_SRGB_CURVE: Final = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)

Transform = ImageCms.ImageCmsTransform


@dataclass(frozen=True, slots=True)
class Conversion:
    """A transform to sRGB of pixels in `mode`."""

    transform: Transform
    mode: str

    def apply(self, image: Image.Image) -> Image.Image:
        """The picture in sRGB."""
        converted: Image.Image = self.transform.apply(image.convert(self.mode))
        return converted


def to_srgb(
    profile: bytes | None, chunks: Mapping[bytes, bytes], mode: str, *, code_points_first: bool
) -> Conversion | None:
    """How pixels in `mode` (RGB, L or CMYK) become sRGB; `None` where they are to stay as they are.

    The first description that can be used counts: in a PNG cICP, the ICC profile, sRGB, and gAMA
    with cHRM (third edition, section 4.3); elsewhere the profile and the code points.
    """
    embedded, code_points = (profile, mode), (code_points_profile(chunks.get(b"cICP", b"")), "RGB")
    ways = [embedded, code_points, (measured_profile(chunks), "RGB")]
    if code_points_first:
        ways[:2] = code_points, embedded
    for described, needed in ways:
        if described:
            with suppress(UnusableProfileError):
                transform = srgb_transform(described, needed)
                return None if transform is None else Conversion(transform, needed)
    return None


class UnusableProfileError(Exception):
    """A profile is broken, or of another colour space than the pixels."""


@lru_cache(maxsize=_CACHED)
def srgb_transform(profile: bytes, mode: str) -> Transform | None:
    """The transform of pixels in `mode` (RGB, L or CMYK) with this ICC profile to sRGB.

    `None` where it is sRGB already. Raises `UnusableProfileError`.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            raise UnusableProfileError
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", Intent.PERCEPTUAL
        )
        return None if _changes_nothing(transform, mode) else transform
    except (PyCMSError, OSError, ValueError, TypeError) as error:
        raise UnusableProfileError from error


def _changes_nothing(transform: Transform, mode: str) -> bool:
    """Whether the transform leaves a probe of all colours as Pillow converts them itself."""
    if mode == "CMYK":
        return False
    if mode == "L":
        probe = Image.linear_gradient("L")
    else:
        probe = Image.new("RGB", (_PROBE_SIDE**2, _PROBE_SIDE))
        levels = [round(255 * step / (_PROBE_SIDE - 1)) for step in range(_PROBE_SIDE)]
        probe.putdata([(r, g, b) for r in levels for g in levels for b in levels])
    before, after = probe.convert("RGB").tobytes(), transform.apply(probe).tobytes()
    return all(abs(a - b) <= _SAME for a, b in zip(before, after, strict=True))


def code_points_profile(content: bytes) -> bytes | None:
    """An ICC profile of a cICP chunk (PNG, third edition, section 11.3.2.6), or `None`.

    As of colours that primaries and a curve cannot say, and of samples that are not full-range RGB.
    """
    primaries, transfer, *form = content if len(content) == 4 else (0, 0)  # noqa: PLR2004 - bytes
    colours, curve = _CICP_PRIMARIES.get(primaries), _CICP_CURVES.get(transfer)
    return rgb_profile(colours, curve) if colours and curve and form == [0, 1] else None


def measured_profile(chunks: Mapping[bytes, bytes]) -> bytes | None:
    """An ICC profile of gAMA and cHRM (section 11.3.2), where no sRGB chunk stands above them.

    `None` for sRGB and for what is broken. A gAMA chunk of 1/2.2 alone means sRGB.
    """
    if chunks.get(b"sRGB") in _INTENTS or len(chunks.get(b"gAMA", b"")) != 4:  # noqa: PLR2004 - bytes
        return None
    gamma = int.from_bytes(chunks[b"gAMA"]) / 100_000
    if not _MIN_GAMMA <= gamma <= _MAX_GAMMA:
        return None
    usual = abs(gamma - _USUAL_GAMMA) < _USUAL_GAMMA_TOLERANCE
    curve = _SRGB_CURVE if usual else (1 / gamma,)
    if len(chunks.get(b"cHRM", b"")) == 32:  # noqa: PLR2004 - eight numbers of four bytes
        colours = [value / 100_000 for value in struct.unpack(">8I", chunks[b"cHRM"])]
        if profile := rgb_profile(colours, curve):
            return profile
    return None if usual else rgb_profile((*_D65, *_SRGB_PRIMARIES), curve)


_INTENTS: Final = tuple(bytes((intent,)) for intent in range(4))
"""What an sRGB chunk may hold."""
_USUAL_GAMMA: Final = 0.45455
_USUAL_GAMMA_TOLERANCE: Final = 0.005
_MIN_GAMMA, _MAX_GAMMA = 0.2, 2.0
_P3: Final = (0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
_BT2020: Final = (0.708, 0.292, 0.170, 0.797, 0.131, 0.046)
_CICP_PRIMARIES: Final = {
    1: (*_D65, *_SRGB_PRIMARIES),
    9: (*_D65, *_BT2020),
    11: (0.314, 0.351, *_P3),
    12: (*_D65, *_P3),
}
"""White, red, green and blue as x and y (ITU-T H.273, table 2)."""
_CICP_CURVES: Final[Mapping[int, Sequence[float]]] = {
    **dict.fromkeys((1, 6, 13, 14, 15), _SRGB_CURVE),
    4: (2.2,),
    5: (2.8,),
    8: (1.0,),
}
"""Parameters of an ICC curve (ITU-T H.273, table 3). Those of television are shown as sRGB, as
browsers show them; PQ and HLG have no such curve."""


def rgb_profile(xy: Sequence[float], curve: Sequence[float]) -> bytes | None:
    """An ICC profile (ICC.1:2022) of white, red, green and blue, and one parametric curve for all.

    `xy` holds x and y of each; `None` where they are no colours.
    """
    if min(xy[1::2]) <= 0:
        return None
    white, *colours = (
        (x / y, 1.0, (1 - x - y) / y) for x, y in zip(xy[::2], xy[1::2], strict=True)
    )
    matrix = _to_d50(white, colours)
    if matrix is None:
        return None
    tags = {
        b"wtpt": _xyz_tag(_D50),
        b"desc": _text_tag("made of PNG chunks"),
        b"cprt": _text_tag(""),
    }
    tags |= {
        name: _xyz_tag([row[index] for row in matrix])
        for index, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
    }
    kind = 0 if len(curve) == 1 else 3
    para = b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + b"".join(map(_s15, curve))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), para)
    table, content = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        table += name + struct.pack(">II", start + len(content), len(tag))
        content += tag + b"\0" * (-len(tag) % 4)
    header = bytearray(128)
    header[0:4] = struct.pack(">I", start + len(content))
    header[8:12] = b"\x04\x30\0\0"
    header[12:24] = b"mntrRGB XYZ "
    header[36:40] = b"acsp"
    header[68:80] = b"".join(map(_s15, _D50))
    return bytes(header) + table + content


_Vector = Sequence[float]
_D50: Final = (0.9642, 1.0, 0.8249)
_BRADFORD: Final = (
    (0.8951, 0.2664, -0.1614),
    (-0.7502, 1.7135, 0.0367),
    (0.0389, -0.0685, 1.0296),
)


def _to_d50(white: _Vector, colours: Sequence[_Vector]) -> list[list[float]] | None:
    """The matrix from linear RGB to XYZ, adapted to D50 (ICC.1:2022, annex E)."""
    columns = [list(row) for row in zip(*colours, strict=True)]
    inverse = _inverse(columns)
    back = _inverse(_BRADFORD)
    if inverse is None or back is None:
        return None
    scale = _times(inverse, white)
    plain = [[value * scale[index] for index, value in enumerate(row)] for row in columns]
    gains = [
        b / a if a else 0.0
        for a, b in zip(_times(_BRADFORD, white), _times(_BRADFORD, _D50), strict=True)
    ]
    scaled = [[gain * value for value in row] for gain, row in zip(gains, _BRADFORD, strict=True)]
    adapt = _product(back, scaled)
    matrix = _product(adapt, plain)
    return matrix if all(abs(value) < _LARGEST for row in matrix for value in row) else None


_LARGEST: Final = 32.0


def _times(matrix: Sequence[_Vector], vector: _Vector) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def _product(left: Sequence[_Vector], right: Sequence[_Vector]) -> list[list[float]]:
    columns = list(zip(*right, strict=True))
    return [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in left
    ]


def _inverse(matrix: Sequence[_Vector]) -> list[list[float]] | None:
    (a, b, c), (d, e, f), (g, h, i) = matrix
    adjugate = [
        [e * i - f * h, c * h - b * i, b * f - c * e],
        [f * g - d * i, a * i - c * g, c * d - a * f],
        [d * h - e * g, b * g - a * h, a * e - b * d],
    ]
    determinant = a * adjugate[0][0] + b * adjugate[1][0] + c * adjugate[2][0]
    if abs(determinant) < 1e-9:  # noqa: PLR2004 - the colours lie on one line
        return None
    return [[value / determinant for value in row] for row in adjugate]


def _s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz_tag(xyz: _Vector) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_s15, xyz))


def _text_tag(text: str) -> bytes:
    content = text.encode("utf-16-be")
    return (
        b"mluc\0\0\0\0"
        + struct.pack(">II", 1, 12)
        + b"enUS"
        + struct.pack(">II", len(content), 28)
        + content
    )
