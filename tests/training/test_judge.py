"""The judge reads drawings back right, and does not see what is not there."""

import torch

from training import drawing, judge, layout, style, world


def test_drawings_are_read_back_right() -> None:
    scenes = world.sample(120, torch.Generator().manual_seed(11))
    verdict = judge.judge(drawing.draw(scenes, 128))
    for name in ("colour", "fill", "background"):
        assert torch.equal(getattr(verdict, name), getattr(scenes, name)), name
    assert (verdict.shape == scenes.shape).float().mean() >= 0.98
    area = drawing.mask(scenes, 128) > 0.5
    assert judge.overlap(verdict.mask, area).mean() > 0.95


def test_drawings_of_the_wide_world_are_read_back_right() -> None:
    scenes = world.sample(100, torch.Generator().manual_seed(13), wide=True)
    verdict = judge.judge(drawing.draw(scenes, 128))
    for name, share in (("shape", 0.9), ("colour", 0.9), ("fill", 0.93), ("background", 0.95)):
        assert (getattr(verdict, name) == getattr(scenes, name)).float().mean() >= share, name


def test_noise_of_a_decoder_changes_no_verdict() -> None:
    generator = torch.Generator().manual_seed(12)
    scenes = world.sample(60, generator)
    noise = 8 * torch.randn(60, 3, 128, 128, generator=generator)
    pictures = (drawing.draw(scenes, 128) + noise).clamp(0, 255).to(torch.uint8)
    verdict = judge.judge(pictures)
    assert (verdict.colour == scenes.colour).float().mean() >= 0.98
    assert (verdict.shape == scenes.shape).float().mean() >= 0.95


def test_an_empty_picture_has_no_object() -> None:
    verdict = judge.judge(torch.full((1, 3, 128, 128), 120, dtype=torch.uint8))
    assert verdict.shape.tolist() == [-1]
    assert verdict.background.tolist() == [1]


def test_overlap_is_one_for_the_same_area_and_zero_for_none() -> None:
    left = torch.zeros(1, 8, 8, dtype=torch.bool)
    left[:, :, :4] = True
    assert judge.overlap(left, left).item() == 1
    assert judge.overlap(left, ~left).item() == 0


def test_each_look_is_seen_where_it_was_drawn_and_nowhere_else() -> None:
    scenes = world.sample(40, torch.Generator().manual_seed(14))
    drawn = {look: draw(scenes, 128) for look, draw in style.LOOKS.items()}
    plain = drawing.draw(scenes, 128)
    assert set(judge.LOOKS) == set(drawn) == set(layout.LOOKS)
    for look, seen in judge.LOOKS.items():
        assert seen(drawn[look]).float().mean() >= 0.85, look
        others = [plain, *(pictures for other, pictures in drawn.items() if other != look)]
        assert seen(torch.cat(others)).float().mean() <= 0.05, look
        verdict = judge.judge(drawn[look])
        right = (verdict.colour == scenes.colour) & (verdict.background == scenes.background)
        assert right.float().mean() >= 0.9, look
