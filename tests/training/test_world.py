"""The world: what is drawn, what is said of it, and what is kept out of training."""

from dataclasses import replace
from pathlib import Path

import torch

from training import captions, drawing, pool, tokenizer, world
from training.world import COLOUR_NAMES, HELD_OUT, SHAPES


def pairs(scenes: world.Scenes) -> set[tuple[str, str]]:
    columns = zip(scenes.colour.tolist(), scenes.shape.tolist(), strict=True)
    return {(COLOUR_NAMES[colour], SHAPES[shape]) for colour, shape in columns}


def test_held_out_pairs_are_never_drawn_in_training() -> None:
    drawn = pairs(world.sample(20_000, torch.Generator().manual_seed(3)))
    assert not drawn & set(HELD_OUT)
    assert len(drawn) == len(SHAPES) * len(COLOUR_NAMES) - len(HELD_OUT)


def test_held_out_scenes_show_nothing_else() -> None:
    drawn = pairs(world.sample(500, torch.Generator().manual_seed(3), held_out=True))
    assert drawn == set(HELD_OUT)


def test_objects_lie_within_the_picture() -> None:
    scenes = world.sample(64, torch.Generator().manual_seed(1))
    inside = drawing.distance(scenes, 64)
    half_a_pixel = 0.501 / 64
    for edge in (inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1]):
        assert edge.min() >= -half_a_pixel


def test_an_outline_follows_the_object_on_black() -> None:
    scenes = world.sample(32, torch.Generator().manual_seed(1))
    lines = drawing.outline(scenes, 64)[:, 0] > 127
    inside = drawing.distance(scenes, 64)
    assert inside[lines].abs().max() < 2 / 64
    assert (lines.flatten(1).sum(1) > 30).all()


def test_captions_say_what_the_issue_says() -> None:
    star, red, striped, navy = 3, 0, 1, 2
    assert captions.caption(star, red, striped, navy) == "a striped red star on a navy background"
    out = captions.LEFT_OUT
    assert captions.caption(star, out, out, out) == "a star"
    assert captions.caption(out, red, out, 5) == "a red shape on a teal background"
    assert captions.caption(star, 5, out, out) == "an orange star"


def test_each_number_is_its_caption_s() -> None:
    for shape in range(-1, 6):
        for background in range(-1, 6):
            place = captions.number(shape, 4, -1, background)
            assert captions.SENTENCES[place] == captions.caption(shape, 4, -1, background)
    assert captions.SENTENCES[captions.EMPTY] == ""
    assert captions.SENTENCES[captions.FIRST_SETTING] == "on a black background"
    assert len(set(captions.SENTENCES)) == len(captions.SENTENCES)


def test_each_word_of_a_caption_is_one_token(tmp_path: Path) -> None:
    words = tokenizer.write(tmp_path)
    for sentence in captions.SENTENCES:
        assert len(words(sentence).input_ids) == len(sentence.split()) + 2
    assert len(words("photograph").input_ids) > 3


def test_an_image_prompt_shows_the_target_s_object_elsewhere() -> None:
    scenes, shown = pool.scenes(3000), pool.prompts(10_000)
    views = pool.Views(scenes, shown)
    rows = torch.arange(3000)
    generator = torch.Generator().manual_seed(0)
    same = shown[views.same_background(rows, generator)]
    assert torch.equal(same.combination(), scenes.combination())
    anywhere = shown[views.any_background(rows, generator)]
    assert torch.equal(anywhere.shape, scenes.shape)
    assert torch.equal(anywhere.colour, scenes.colour)
    assert (anywhere.background != scenes.background).float().mean() > 0.5
    other = shown[views.any_shape(rows, generator)]
    assert torch.equal(other.background, scenes.background)
    assert (other.shape != scenes.shape).float().mean() > 0.5


def test_the_pool_s_first_half_is_painted_in_the_clean_look() -> None:
    both = pool.scenes(pool.PLAIN + 8)
    assert len(both) == pool.PLAIN + 8
    clean = pool.scenes(pool.PLAIN)[:8]
    assert torch.equal(drawing.draw(both[:8], 64), drawing.draw(clean, 64))
    wide = both[pool.PLAIN :]
    assert not torch.equal(
        drawing.distance(wide, 64), drawing.distance(replace(wide, looks=None), 64)
    )


def test_wide_pictures_show_the_same_attributes_in_many_looks() -> None:
    generator = torch.Generator().manual_seed(2)
    wide = world.sample(300, generator, wide=True)
    drawn = drawing.draw(wide, 64)
    assert (drawn != drawing.draw(replace(wide, looks=None), 64)).flatten(1).any(1).all()
    assert not pairs(wide) & set(HELD_OUT)
    angle, _, width, _ = wide.looks.stripes.T
    assert angle.min() < 0.2
    assert angle.max() > 2.9
    assert width.min() < 0.06
    assert width.max() > 0.13
    assert wide.radius.min() < 0.17
    assert wide.radius.max() > 0.43
    over = drawing.distance(replace(wide, looks=None), 64)
    edges = torch.stack([over[:, 0], over[:, -1], over[:, :, 0], over[:, :, -1]])
    assert 0.02 < (edges.amin((0, 2)) < -0.01).float().mean() < 0.5
