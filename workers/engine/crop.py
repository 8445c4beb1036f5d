"""How a non-square image prompt is made square before it meets the image encoder."""

from typing import Final

from PIL import Image

from service.core.request import Crop

PAD_COLOUR: Final = (122, 116, 104)
"""The mean colour of CLIP's training pictures: after CLIP's normalisation it is zero."""


def square(image: Image.Image, crop: Crop, size: int) -> Image.Image:
    """Apply `crop` to an RGB picture; `size` is the side the encoder takes, in pixels.

    `center` is left as it is: CLIP's own preprocessing scales the shorter side and cuts the
    middle out. `pad` puts the picture in the middle of a square of CLIP's mean colour. `resize`
    squashes it to the square, so that all of it is seen and its proportions are lost.
    """
    if crop is Crop.PAD and image.width != image.height:
        side = max(image.size)
        padded = Image.new("RGB", (side, side), PAD_COLOUR)
        padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return padded
    if crop is Crop.RESIZE and image.width != image.height:
        return image.resize((size, size), Image.Resampling.BICUBIC)
    return image
