"""Each stage learns on a tiny model, and leaves alone what it says is frozen."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from training import (
    adapter,
    architecture,
    captions,
    clip,
    controlnet,
    decoupled,
    diffusion,
    drawing,
    lora,
    pool,
    style,
    t2i,
    towers,
    unet,
    vae,
    vision,
    world,
)
from training.adapter import Frozen
from training.loop import Budget, Loop
from training.lora import Lora
from training.pool import TextFeatures
from training.towers import Towers, see, truth

TINY = architecture.TINY
N = 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learns(model: nn.Module, loss: Callable[[], Tensor], steps: int = 12) -> None:
    """Take steps on one batch; its loss must fall."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    first = loss().item()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < first


def same(before: dict[str, Tensor], model: nn.Module) -> bool:
    return all(torch.equal(before[key], weight) for key, weight in model.state_dict().items())


@pytest.fixture
def scenes() -> world.Scenes:
    torch.manual_seed(0)
    return world.sample(N, generator())


@pytest.fixture
def text() -> TextFeatures:
    rows = len(captions.SENTENCES) + 1
    return TextFeatures(
        torch.randn(rows, architecture.MAX_TOKENS, TINY.context, generator=generator()),
        torch.randn(rows, TINY.projection, generator=generator()),
    )


@pytest.fixture
def noised() -> diffusion.Noised:
    latents = torch.randn(N, 4, TINY.latent_size, TINY.latent_size, generator=generator())
    return diffusion.noise(latents, generator())


def test_the_autoencoder_learns(scenes: world.Scenes) -> None:
    model = architecture.vae(TINY)
    pixels = vae.to_model(drawing.draw(scenes, TINY.size))
    learns(model, lambda: vae.loss(model, pixels))


def test_standardised_latents_change_no_picture(scenes: world.Scenes) -> None:
    model = architecture.vae(TINY).eval()
    pixels = vae.to_model(drawing.draw(scenes, TINY.size))
    with torch.no_grad():
        before = model.decode(model.encode(pixels).latent_dist.mode()).sample
        vae.standardise(model, pixels)
        latents = model.encode(pixels).latent_dist
        after = model.decode(latents.mode()).sample
    assert (before - after).abs().max() < 1e-4
    assert latents.mean.mean((0, 2, 3)).abs().max() < 1e-3
    assert (latents.mean * model.config.scaling_factor).std() == pytest.approx(1, abs=1e-2)


def test_the_towers_learn_and_count_every_true_caption(scenes: world.Scenes) -> None:
    tokens = clip.sentence_tokens()
    model = Towers(TINY, int(tokens.max()) + 1)
    pixels = see(drawing.draw(scenes, 64))
    named = truth(scenes)
    chosen = tokens[clip.numbers(named)]
    learns(model, lambda: model.loss(pixels, chosen, named, scenes))


@pytest.mark.parametrize("plus", [False, True])
def test_the_image_features_learn_to_be_read_as_captions(
    scenes: world.Scenes, text: TextFeatures, *, plus: bool
) -> None:
    torch.manual_seed(0)
    tokens = clip.sentence_tokens()
    model = vision.freeze_text(Towers(TINY, int(tokens.max()) + 1))
    pixels = see(drawing.draw(scenes, 64))
    numbers = clip.numbers(truth(scenes))
    said = text.context[numbers]

    def difference() -> float:
        with torch.no_grad():
            seen = model.image_encoder(pixels, output_hidden_states=True)
            if plus:
                words = model.words_plus(seen.hidden_states[-2])
                return (words - said[:, captions.SPOKEN_PLUS]).square().mean().item()
            words = model.words(seen.image_embeds)
            return (words - said[:, captions.SPOKEN]).square().mean().item()

    first, before = difference(), copy.deepcopy(model.text_encoder.state_dict())
    learns(model, lambda: model.loss(pixels, tokens[numbers], truth(scenes), scenes, said))
    assert difference() < first
    assert same(before, model.text_encoder)


def test_a_held_out_pair_counts_as_no_wrong_answer() -> None:
    star, ring, cyan, red, out = 3, 4, 6, 0, captions.LEFT_OUT
    pictures = torch.tensor([[star, red, 0, 0], [ring, cyan, 0, 0]])
    named = torch.tensor([[star, out, out, out], [out, red, out, out], [ring, out, out, 1]])
    assert towers.pairs_up(named, pictures).tolist() == [
        [False, False, True],  # a red picture, "a ring"
        [True, True, False],  # a cyan ring, "a star" and "a red shape"
    ]


def test_the_unet_learns(
    scenes: world.Scenes, text: TextFeatures, noised: diffusion.Noised
) -> None:
    model = architecture.unet(TINY)
    conditioning = unet.conditions(text, unet.choose(scenes, generator()), TINY.size)
    learns(model, lambda: noised.loss(conditioning.predict(model, noised)))


@pytest.mark.parametrize("plus", [False, True])
def test_the_adapter_learns_while_the_unet_stays_frozen(
    text: TextFeatures, noised: diffusion.Noised, *, plus: bool
) -> None:
    torch.manual_seed(0)
    frozen = architecture.unet(TINY)
    before = copy.deepcopy(frozen.state_dict())
    model = adapter.Adapter(frozen, TINY, plus=plus)
    features = (N, 50, TINY.vision) if plus else (N, TINY.projection)
    image = torch.randn(features, generator=generator())
    empty = torch.full((N,), captions.EMPTY)
    conditioning = unet.conditions(text, empty, TINY.size)
    learns(model, lambda: noised.loss(model.join(conditioning, image).predict(frozen, noised)))
    kept = {k: w for k, w in frozen.state_dict().items() if ".processor." not in k}
    assert all(torch.equal(before[key], weight) for key, weight in kept.items())
    assert before.keys() == kept.keys()


def test_image_tokens_equal_the_caption_s_end() -> None:
    sentences = clip.sentence_tokens()
    full = sentences[clip.numbers(world.attributes(held_out=False))]
    ends = (full == sentences.max()).float().argmax(1)
    assert ends.unique().tolist() == [max(captions.SPOKEN)] == [max(captions.SPOKEN_PLUS)]


def test_a_fresh_adapter_copies_the_text_s_keys_and_values() -> None:
    frozen = architecture.unet(TINY)
    added = decoupled.attach(frozen, 4)
    names = list(frozen.attn_processors)
    assert len(added) == len(names) // 2
    for place, own in added.items():
        attention = frozen.get_submodule(names[int(place)].removesuffix(".processor"))
        assert torch.equal(own.to_k_ip.weight, attention.to_k.weight)
        assert torch.equal(own.to_v_ip.weight, attention.to_v.weight)


def test_scale_zero_is_the_unet_without_an_adapter(
    text: TextFeatures, noised: diffusion.Noised
) -> None:
    torch.manual_seed(0)
    frozen = architecture.unet(TINY).eval()
    conditioning = unet.conditions(text, torch.arange(N), TINY.size)
    with torch.no_grad():
        plain = conditioning.predict(frozen, noised)
        model = adapter.Adapter(frozen, TINY, plus=False)
        joined = model.join(conditioning, torch.randn(N, TINY.projection, generator=generator()))
        one = joined.predict(frozen, noised)
        for attention in model.attentions.values():
            attention.scale = 0.0
        zero = joined.predict(frozen, noised)
    assert (plain - zero).abs().max() <= 1e-5
    assert (plain - one).abs().max() > 1e-5


def test_a_style_prompt_acts_in_the_style_block_alone() -> None:
    torch.manual_seed(0)
    frozen = architecture.unet(architecture.SHAPES)
    model = adapter.Adapter(frozen, architecture.SHAPES, plus=False)
    names = list(frozen.attn_processors)
    style_only, absent = torch.tensor([True, False, True]), torch.tensor([False, True, True])
    for given, inside, elsewhere in (
        ((style_only,), [1, 1, 1], [0, 1, 0]),
        ((style_only, absent), [1, 0, 0], [0, 0, 0]),
    ):
        model.act_in_style_block(*given)
        for place, attention in model.attentions.items():
            expected = inside if names[int(place)].startswith("up_blocks.1.") else elsewhere
            assert attention.scale.flatten().tolist() == expected


@pytest.mark.parametrize("network", [controlnet, t2i])
def test_a_network_for_maps_learns_while_the_unet_stays_frozen(
    scenes: world.Scenes, text: TextFeatures, noised: diffusion.Noised, network: ModuleType
) -> None:
    torch.manual_seed(0)
    frozen = architecture.unet(TINY)
    model = controlnet.empty(frozen) if network is controlnet else t2i.empty(TINY)
    beside = adapter.Adapter(frozen, TINY, plus=False).requires_grad_(requires_grad=False)
    before = copy.deepcopy(frozen.state_dict())
    alone = unet.conditions(text, torch.arange(N), TINY.size)
    joined = beside.join(alone, torch.randn(N, TINY.projection, generator=generator()))
    outlines = drawing.outline(scenes, TINY.size).float() / 255
    conditioning = controlnet.Conditioning(alone, joined, outlines)

    def predicted() -> Tensor:
        prediction: Tensor = network.predict(model, frozen, noised, conditioning)
        return prediction

    if network is controlnet:  # untrained it changes nothing
        with torch.no_grad():
            assert torch.allclose(predicted(), joined.predict(frozen, noised), atol=1e-6)
    learns(model, lambda: noised.loss(predicted()))
    assert same(before, frozen)


def test_a_look_trains_its_lora_alone(
    tmp_path: Path, text: TextFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(architecture, "SHAPES", TINY)
    model = architecture.unet(TINY)
    frozen = Frozen(
        unet=model,
        latents=torch.randn(2000, 4, TINY.latent_size, TINY.latent_size, generator=generator()),
        text=text,
        images=torch.randn(len(pool.prompts()), TINY.projection, generator=generator()),
        no_image=torch.zeros(TINY.projection),
        words=nn.Identity(),
    )
    beside = adapter.Adapter(model, TINY, plus=False).requires_grad_(requires_grad=False)
    updates = Lora(model, 2, lora.EVERYTHING)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    style.train(Loop("lora", updates, Budget(0.02, 1e-2), tmp_path), frozen, beside, model)
    after = model.state_dict()
    changed = {key for key, weight in before.items() if not torch.equal(after[key], weight)}
    assert changed
    assert all(".lora_" in key for key in changed)


def test_dropped_prompts_come_as_often_as_the_paper_says() -> None:
    scenes, shown = pool.scenes(2000), pool.prompts(10_000)
    rows = torch.arange(2000).repeat(5)
    prompts = adapter.choose(scenes, rows, pool.Views(scenes, shown), generator())
    assert prompts.no_image.float().mean().item() == pytest.approx(2 * adapter.DROP, abs=0.02)
    assert prompts.style.float().mean().item() == pytest.approx(adapter.STYLE, abs=0.02)
    # An image on another background stands only beside a text that names the target's.
    elsewhere = shown[prompts.images].background != scenes[rows].background
    settings = [
        captions.SENTENCES[s] for s in prompts.sentences[elsewhere].tolist() if s < pool.ZEROS
    ]
    assert sum("background" in sentence for sentence in settings) / len(settings) > 0.85


def test_a_broken_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def start() -> tuple[nn.Linear, Loop]:
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        return model, Loop("linear", model, Budget(0.01, 1e-2, ema=0.9), tmp_path)

    model, loop = start()
    data = torch.randn(16, 4, generator=generator())
    loop.run(lambda _: (model(data) - 1).square().mean())
    again, resumed = start()
    assert resumed.step == loop.step > 0
    assert torch.equal(again.weight, model.weight)
    assert (tmp_path / "linear.png").exists()
    resumed.run(lambda _: pytest.fail("the budget was used up"))


def test_time_ids_say_the_size(text: TextFeatures) -> None:
    conditioning = unet.conditions(text, torch.tensor([0]), 128)
    assert conditioning.time_ids.tolist() == [[128, 128, 0, 0, 128, 128]]
    assert replace(conditioning).pooled.shape == (1, TINY.projection)
