"""Names files that are not served, by their first bytes, for the error that refuses them."""

import re
from collections.abc import Iterable
from typing import Final

HEAD_BYTES: Final = 4096
"""How much of a file is looked at."""

_BRANDS: Final = {
    b"qt": "a QuickTime video",
    b"M4A": "MPEG-4 audio",
    b"M4B": "MPEG-4 audio",
    b"3g": "a 3GP video",
    b"crx": "a Canon raw picture",
    b"jp2": "JPEG 2000",
    b"jpx": "JPEG 2000",
    b"jpm": "JPEG 2000",
    b"mjp2": "Motion JPEG 2000",
    b"jxl": "JPEG XL",
}
"""How the brands of ISO/IEC 14496-12 begin."""

_RIFF: Final = {
    b"AVI ": "an AVI video",
    b"WAVE": "a WAV sound",
    b"ACON": "an animated cursor",
    b"CDR": "CorelDRAW",
    b"PAL ": "a palette",
    b"RMID": "MIDI",
}

_MAGIC: Final = {
    # Pictures.
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "BigTIFF",
    b"MM\0+": "BigTIFF",
    b"II\xbc": "JPEG XR",
    b"IIRO": "an Olympus raw picture",
    b"IIRS": "an Olympus raw picture",
    b"MMOR": "an Olympus raw picture",
    b"IIU\0": "a Panasonic raw picture",
    b"II\x1a\0\0\0HEAPCCDR": "a Canon raw picture",
    b"FUJIFILMCCD-RAW": "a Fujifilm raw picture",
    b"\0MRM": "a Minolta raw picture",
    b"FOVb": "a Sigma raw picture",
    b"8BPS": "PSD",
    b"8BPB": "PSB",
    b"gimp xcf": "XCF",
    b"KRITA": "Krita",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?": "Radiance HDR",
    b"DDS ": "DDS",
    b"\xabKTX 1": "KTX",
    b"\xabKTX 2": "KTX 2",
    b"PVR\3": "PVR",
    b"\x13\xab\xa1\x5c": "ASTC",
    b"VTF\0": "VTF",
    b"qoif": "QOI",
    b"farbfeld": "farbfeld",
    b"FLIF": "FLIF",
    b"BPG\xfb": "BPG",
    b"icns": "ICNS",
    b"\0\0\1\0": "ICO",
    b"\0\0\2\0": "CUR",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\0\0\0\x0cjP\x1a\x1a": "JPEG 2000",
    b"\x8bJNG\r\n\x1a\n": "JNG",
    b"\x8aMNG\r\n\x1a\n": "MNG",
    b"\xd7\xcd\xc6\x9a": "WMF",
    b"\1\0\x09\0\0\3": "WMF",
    b"\x01\xda": "SGI",
    b"\xb1\x68\xde\x3a": "DCX",
    b"\x59\xa6\x6a\x95": "Sun raster",
    b"AT&TFORM": "DjVu",
    b"SDPX": "DPX",
    b"XPDS": "DPX",
    b"\x80\x2a\x5f\xd7": "Cineon",
    b"SIMPLE  =": "FITS",
    b"/* XPM": "XPM",
    b"! XPM2": "XPM",
    b"\xf1\0\x40\xbb": "a CMU window manager bitmap",
    b"\x89HDF": "HDF5",
    b"CDF\1": "NetCDF",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "EPS",
    # Videos and sounds.
    b"\x1aE\xdf\xa3": "a WebM or Matroska video",
    b"FLV\1": "a Flash video",
    b"FWS": "Flash",
    b"CWS": "Flash",
    b"ZWS": "Flash",
    b"\0\0\1\xba": "an MPEG video",
    b"\0\0\1\xb3": "an MPEG video",
    b"\0\0\1\xb0": "an MPEG-4 video",
    b"\0\0\0\1\x67": "an H.264 video",
    b"\0\0\0\1\x40": "an H.265 video",
    b"G@": "an MPEG video",
    b"DKIF": "an IVF video",
    b"YUV4MPEG2": "a YUV4MPEG2 video",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "a Windows Media file",
    b".RMF": "a RealMedia file",
    b"OggS": "Ogg",
    b"fLaC": "FLAC",
    b"ID3": "MP3",
    b"\xff\xfb": "MP3",
    b"\xff\xf3": "MP3",
    b"\xff\xf2": "MP3",
    b"\xff\xf1": "AAC",
    b"\xff\xf9": "AAC",
    b"MThd": "MIDI",
    b"#!AMR": "AMR",
    b".snd": "an AU sound",
    b"wvPK": "WavPack",
    b"MAC ": "Monkey's Audio",
    # Everything else.
    b"PK\x03\x04": "ZIP",
    b"PK\x05\x06": "ZIP",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x04\x22\x4d\x18": "LZ4",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Office document",
    b"{\\rtf": "RTF",
    b"SQLite format 3\0": "SQLite",
    b"\x93NUMPY": "a NumPy array",
    b"\x7fELF": "an ELF program",
    b"\xcf\xfa\xed\xfe": "a macOS program",
    b"\xca\xfe\xba\xbe": "a Java class or macOS program",
    b"MZ": "a Windows program",
    b"\0asm": "WebAssembly",
    b"\0\1\0\0\0": "a TrueType font",
    b"OTTO": "an OpenType font",
    b"wOFF": "a WOFF font",
    b"wOF2": "a WOFF font",
    b"#!": "a script",
}
"""How files begin; the first that fits counts."""

_PATTERNS: Final = (
    (rb"P[14][\s#]", "PBM"),
    (rb"P[25][\s#]", "PGM"),
    (rb"P[36][\s#]", "PPM"),
    (rb"P7 332\s", "an XV thumbnail"),
    (rb"P7[\s#]", "PAM"),
    (rb"P[Ff]4?\s", "PFM"),
    (rb"\x0a[\x00\x02-\x05]\x01[\x01\x02\x04\x08]", "PCX"),
    (rb"\x01\x00\x00\x00.{36} EMF", "EMF"),
    (rb"FORM.{4}(?:ILBM|PBM |ACBM)", "ILBM"),
    (rb"FORM.{4}AIF[FC]", "AIFF"),
    (rb"FORM", "IFF"),
    (rb"FOR[48].{4,12}CIMG", "Maya IFF"),
    (rb".{4}(?:moov|mdat|wide|free|skip|pnot)", "a QuickTime video"),
    (rb"\x47.{187}\x47", "an MPEG video"),
    (rb"\s*(?:/\*.*?\*/\s*)?#define\s+\S+_?width\s+\d+", "XBM"),
    (rb"\s*static\s+(?:const\s+)?char\s*\*", "XPM"),
    (rb".{128}DICM", "DICOM"),
)
"""As `_MAGIC`, where a file's first bytes vary."""


def by_brand(brand: bytes) -> str:
    """The name of an ISO file by its major brand."""
    return _starting(brand, _BRANDS.items()) or "an MP4 video"


def name(head: bytes) -> str | None:
    """The name of a file by its first `HEAD_BYTES`, `None` where it is not known."""
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return _starting(head[8:12], _RIFF.items()) or "RIFF"
    if (kind := _starting(head, _MAGIC.items())) is not None:
        return kind
    for pattern, kind in _PATTERNS:
        if re.match(pattern, head, re.DOTALL):
            return kind
    return _markup(head)


def _markup(head: bytes) -> str | None:
    text = head
    if b"\0" in head[:4]:  # UTF-16 or UTF-32
        text = head.replace(b"\0", b"").removeprefix(b"\xff\xfe").removeprefix(b"\xfe\xff")
    text = text.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if re.search(rb"<(?:\w+:)?svg[\s>]", text):
        return "SVG"
    if text.startswith(
        (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<?xml", b"<!--")
    ):
        return "HTML or XML"
    return None


def _starting(head: bytes, kinds: Iterable[tuple[bytes, str]]) -> str | None:
    return next((kind for magic, kind in kinds if head.startswith(magic)), None)
