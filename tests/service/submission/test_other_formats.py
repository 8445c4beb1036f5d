"""A file of a kind that is not served is refused with its true name."""

import pytest

from service.core.errors import UnsupportedMedia
from tests.service.submission.normalised import read

SVG = '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'
NAMED = [
    (b"P7\nWIDTH 1\nHEIGHT 1\n", "PAM"),
    (b"PF\n1 1\n-1.0\n", "PFM"),
    (b"Pf 1 1 -1.0\n", "PFM"),
    (b"P6 1 1 255\nabc", "PPM"),
    (b"P6\r\n1 1\r\n255\r\nabc", "PPM"),
    (b"P5# made by hand\n1 1 255\na", "PGM"),
    (b"P4\t8 1\n\0", "PBM"),
    (b"II\xbc\x01\x20\0\0\0", "JPEG XR"),
    (b"\xd7\xcd\xc6\x9a\0\0", "WMF"),
    (b"\1\0\0\0" + bytes(36) + b" EMF", "EMF"),
    (b"\x8bJNG\r\n\x1a\n", "JNG"),
    (b"\x8aMNG\r\n\x1a\n", "MNG"),
    (b"\x0a\5\1\x08\0\0\0\0", "PCX"),
    (b"AT&TFORM\0\0\0\1DJVU", "DjVu"),
    (b"\x01\xda\1\1\0\3", "SGI"),
    (b"\x59\xa6\x6a\x95\0\0\0\1", "Sun raster"),
    (b"/* XPM */\nstatic char *a[] = {", "XPM"),
    (b"static char * a_xpm[] = {", "XPM"),
    (b"#define a_width 16\n#define a_height 16\n", "XBM"),
    (b"/* a */\n#define a_width 16\n", "XBM"),
    (b"SIMPLE  =                    T", "FITS"),
    (b"FLIF31\0", "FLIF"),
    (b"\xabKTX 11\xbb\r\n\x1a\n", "KTX"),
    (b"\xabKTX 20\xbb\r\n\x1a\n", "KTX 2"),
    (b"farbfeld\0\0\0\1\0\0\0\1", "farbfeld"),
    (b"#?RGBE\nFORMAT=32-bit_rle_rgbe\n", "Radiance HDR"),
    (SVG.encode("utf-16"), "SVG"),
    (SVG.encode("utf-16-be"), "SVG"),
    (SVG.encode("utf-32"), "SVG"),
    (b"<!-- " + b"x" * 600 + b" -->" + SVG.encode(), "SVG"),
    (b"FORM\0\0\0\x20ILBMBMHD", "ILBM"),
    (b"FLV\1\5\0\0\0\x09", "Flash video"),
    (b"\0\0\1\xba\x44\0", "MPEG video"),
    (b"\x47" + bytes(187) + b"\x47", "MPEG video"),
    (b"\0\0\0\x08wide\0\0\0\x08mdat", "QuickTime video"),
    (b"fLaC\0\0\0\x22", "FLAC"),
    (b"\xff\xfb\x90\x44", "MP3"),
    (bytes(128) + b"DICM", "DICOM"),
]


@pytest.mark.parametrize(("head", "name"), NAMED, ids=lambda value: repr(value)[:24])
def test_a_file_of_another_kind_is_named(head: bytes, name: str) -> None:
    with pytest.raises(UnsupportedMedia, match=rf"^is (?:an? )?{name};"):
        read(head + bytes(40))
