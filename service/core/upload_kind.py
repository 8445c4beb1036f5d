"""What an upload is used for, which decides how its transparency and colours are read."""

from enum import StrEnum


class UploadKind(StrEnum):
    """The kinds of uploads; each upload field is declared with one."""

    PICTURE = "picture"
    """Shown over white, in the colours that its profile says."""
    MAP = "map"
    """Numbers rather than colours: transparent is black, and a colour profile is ignored."""
    MASK = "mask"
    """As a map; with an alpha channel it is white where the file is transparent."""
