"""What the image encoder sees of a non-square image prompt."""

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from service.core.param_types import Crop
from workers.engine.conditioning.image_prompt import LONGEST, PAD_COLOUR, square

RED, BLUE = (255, 0, 0), (0, 0, 255)


def wide() -> Image.Image:
    """Red with blue ends, three times as wide as high."""
    image = Image.new("RGB", (300, 100), BLUE)
    image.paste(Image.new("RGB", (100, 100), RED), (100, 0))
    return image


def test_center_leaves_the_cut_to_the_encoders_own_preprocessing() -> None:
    """As diffusers does it: scale the shorter side, cut the middle out."""
    assert square(wide(), Crop.CENTER, 224) == wide()


@pytest.mark.parametrize("size", [(2500, 1300), (1301, 2503), (2100, 2100), (4000, 250)])
def test_center_of_a_large_picture_is_what_clips_preprocessing_makes_of_it(
    size: tuple[int, int],
) -> None:
    """It is scaled before, without the three copies; not one value differs."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture, clip = Image.fromarray(pixels), CLIPImageProcessorPil(size=224, crop_size=224)
    small = square(picture, Crop.CENTER, 224)
    assert min(small.size) == 224
    wanted, made = (clip(one, return_tensors="np").pixel_values for one in (picture, small))
    assert (wanted == made).all()


@pytest.mark.parametrize("size", [(901, 30), (17, 2001), (9001, 101), (100, 9000)])
def test_center_of_a_long_strip_is_what_clips_preprocessing_makes_of_it(
    size: tuple[int, int],
) -> None:
    """Its middle alone is scaled; fewer than one value in a hundred is off by one or two of 255."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    clip = CLIPImageProcessorPil(size=224, crop_size=224, do_normalize=False)
    middle = square(picture, Crop.CENTER, 224)
    assert middle.size == (224, 224)
    wanted, made = (clip(one, return_tensors="np").pixel_values for one in (picture, middle))
    off = np.abs(wanted - made) * 255
    assert off.max() < 2.5
    assert (off > 0.5).mean() < 0.01


def test_pad_keeps_everything_inside_a_square_of_the_mean_colour() -> None:
    """The picture's proportions stay."""
    padded = square(wide(), Crop.PAD, 224)
    assert padded.size == (300, 300)
    assert padded.getpixel((150, 150)) == RED
    assert padded.getpixel((5, 150)) == BLUE
    assert padded.getpixel((150, 20)) == PAD_COLOUR


def test_resize_squashes_everything_into_the_square() -> None:
    """All of it is seen; its proportions are lost."""
    squashed = square(wide(), Crop.RESIZE, 224)
    assert squashed.size == (224, 224)
    assert squashed.getpixel((112, 5)) == RED
    assert squashed.getpixel((20, 112)) == BLUE


def test_a_square_picture_is_left_alone() -> None:
    """There is nothing to decide."""
    image = Image.new("RGB", (50, 50), RED)
    assert all(square(image, crop, 224) == image for crop in Crop)


def test_a_strip_within_the_upload_s_limits_does_not_fill_the_memory() -> None:
    """60,000 by 10 pixels: a square of 10 GB if padded, 5 GB if its short side becomes 224."""
    strip = Image.new("RGB", (60_000, 10), "white")
    strip.paste("red", (29_990, 0, 30_010, 10))
    for image in (strip, strip.transpose(Image.Transpose.ROTATE_90)):
        padded, middle = square(image, Crop.PAD, 224), square(image, Crop.CENTER, 224)
        assert padded.size == (LONGEST, LONGEST)
        assert middle.size == (224, 224)
        assert middle.getpixel((112, 112)) == (255, 0, 0)
