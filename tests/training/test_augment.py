"""Image prompts and control maps are distorted, and stay what they are."""

from dataclasses import replace

import pytest
import torch

from training import augment, drawing, judge, maps, world


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_image_prompts_are_distorted_each_in_its_own_way() -> None:
    scenes = world.sample(64, generator(), wide=True)
    drawn = drawing.draw(scenes, 64)
    seen = [augment.distort(drawn[i : i + 1], generator(i)) for i in range(64)]
    pairs = zip(seen, drawn, strict=True)
    changed = [s.shape != d[None].shape or not torch.equal(s[0], d) for s, d in pairs]
    assert 0.6 < sum(changed) / len(changed) < 1
    assert {s.dtype for s in seen} == {torch.uint8}
    assert min(s.shape[-1] for s in seen) < 64
    again = augment.distort(drawn[:8], generator(3))
    assert torch.equal(again, augment.distort(drawn[:8], generator(3)))


def test_a_distorted_picture_keeps_its_colours() -> None:
    scenes = world.sample(40, generator(), wide=True)
    plain = replace(world.shapes_only(scenes), fill=torch.zeros(40).long())
    pictures = torch.cat(
        [
            torch.nn.functional.interpolate(
                augment.distort(drawing.draw(plain[i : i + 1], 128), generator(i)).float(),
                size=(128, 128),
                mode="bilinear",
            )
            for i in range(40)
        ]
    ).to(torch.uint8)
    verdict = judge.judge(pictures)
    assert (verdict.background == plain.background).float().mean() > 0.95
    assert (verdict.colour == plain.colour).float().mean() > 0.9


@pytest.mark.parametrize("kind", maps.KINDS)
def test_maps_follow_the_object(kind: str) -> None:
    scenes = world.sample(60, generator(), wide=True)
    scenes = world.shapes_only(scenes)
    drawn = maps.draw(kind, scenes, 128, generator(1))
    assert drawn.shape == (60, 3, 128, 128)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    distance = drawing.distance(scenes, 128)
    # Nothing is far from the outline, or from the area.
    far = (distance.abs() if kind == "outline" else distance) > 0.07
    assert (drawn[:, 0] * far).max() < 0.02
    ink = drawn[:, 0].flatten(1)
    assert (ink.max(1).values > 0.2).all()
    assert (ink.max(1).values < 0.7).any()


def test_a_blur_keeps_the_mean_and_smears_an_edge() -> None:
    picture = torch.zeros(1, 3, 32, 32)
    picture[..., 16:] = 255
    blurred = augment.blur(picture, 0.05)
    assert blurred.shape == picture.shape
    assert blurred.mean() == pytest.approx(127.5, abs=1)
    assert 0 < blurred[0, 0, 16, 15] < 127.5
