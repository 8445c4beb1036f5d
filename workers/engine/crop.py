"""How a non-square image prompt is made square before it meets the image encoder."""

from typing import Final

from PIL import Image, ImageOps

from service.core.params import Crop

PAD_COLOUR: Final = (122, 116, 104)
"""The mean colour of CLIP's training pictures: after CLIP's normalisation it is zero."""
LONGEST: Final = 8192
"""Side of the largest square that is padded to, in pixels: a strip of 65,535 by 600 pixels is
within the upload's limits, and its square would be 13 GB."""
WIDEST: Final = 16
"""Long side in short sides beyond which a strip is cut to its middle before CLIP enlarges it."""


def square(image: Image.Image, crop: Crop, size: int) -> Image.Image:
    """Apply `crop` to an RGB picture; `size` is the side the encoder takes, in pixels.

    `center` is left to CLIP's own preprocessing, which scales the shorter side and cuts the middle
    out; only of a very long strip no more than the middle is handed on. `pad` puts the picture in
    the middle of a square of CLIP's mean colour. `resize` squashes it to the square, so that all of
    it is seen and its proportions are lost.
    """
    if crop is Crop.PAD and image.width != image.height:
        if max(image.size) > LONGEST:
            image = ImageOps.contain(image, (LONGEST, LONGEST), Image.Resampling.BICUBIC)
        side = max(image.size)
        padded = Image.new("RGB", (side, side), PAD_COLOUR)
        padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return padded
    if crop is Crop.RESIZE and image.width != image.height:
        return image.resize((size, size), Image.Resampling.BICUBIC)
    if crop is Crop.CENTER:
        reach = WIDEST * min(image.size)
        left, top = (max(0, (length - reach) // 2) for length in image.size)
        if left or top:
            return image.crop((left, top, image.width - left, image.height - top))
    return image
