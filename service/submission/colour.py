"""Colour conversion of uploads to sRGB, by what a file says about its colours.

An ICC profile comes first, then what PNG's own chunks say. A profile that is broken, or made for
another kind of pixels, is ignored, as browsers do.
"""

import io
import struct
from collections.abc import Mapping, Sequence
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


@lru_cache(maxsize=_CACHED)
def srgb_transform(profile: bytes, mode: str) -> Transform | None:
    """The transform of pixels in `mode` (RGB, L or CMYK) with this ICC profile to sRGB.

    `None` where the profile is broken or of another colour space, or where it is sRGB already.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", Intent.PERCEPTUAL
        )
        return None if _changes_nothing(transform, mode) else transform
    except (PyCMSError, OSError, ValueError, TypeError):
        return None


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


def described_profile(chunks: Mapping[bytes, bytes]) -> bytes | None:
    """An ICC profile of what a file says by numbers (PNG, third edition, section 11.3.2).

    cICP counts before sRGB, and that before gAMA and cHRM. `None` for sRGB and for what is
    broken or cannot be said by primaries and a curve. A gAMA chunk of 1/2.2 alone means sRGB.
    """
    if b"cICP" in chunks:
        primaries, transfer, *_ = (*chunks[b"cICP"], 0, 0)
        colours, curve = _CICP_PRIMARIES.get(primaries), _CICP_CURVES.get(transfer)
        return rgb_profile(colours, curve) if colours and curve else None
    if b"sRGB" in chunks:
        return None
    gamma = int.from_bytes(chunks.get(b"gAMA", b"")[:4]) / 100_000
    colours = (*_D65, *_SRGB_PRIMARIES)
    if len(chunks.get(b"cHRM", b"")) == 32:  # noqa: PLR2004 - eight numbers of four bytes
        colours = tuple(value / 100_000 for value in struct.unpack(">8I", chunks[b"cHRM"]))
    elif abs(gamma - _USUAL_GAMMA) < _USUAL_GAMMA_TOLERANCE:
        return None
    if not _MIN_GAMMA <= gamma <= _MAX_GAMMA:
        return None
    curve = _SRGB_CURVE if abs(gamma - _USUAL_GAMMA) < _USUAL_GAMMA_TOLERANCE else (1 / gamma,)
    return rgb_profile(colours, curve)


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
