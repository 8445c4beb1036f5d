"""The LoRA for few steps: its parts by the paper's formulas, its file, and that it learns."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from training import adapter, architecture, captions, diffusion, layout, lcm, lora, pool, t2i
from training.adapter import Frozen
from training.lora import Lora
from training.painter import Order, Painter
from training.pool import TextFeatures

SHAPE = architecture.TINY
N = 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def text() -> TextFeatures:
    rows = len(captions.SENTENCES) + 1
    return TextFeatures(
        torch.randn(rows, architecture.MAX_TOKENS, SHAPE.context, generator=generator()),
        torch.randn(rows, SHAPE.projection, generator=generator()),
    )


def test_the_solver_s_step_is_ddim_s() -> None:
    latents, velocity = torch.randn(2, 1, 4, 8, 8, generator=generator())
    scheduler = DDIMScheduler(**architecture.SCHEDULER)
    scheduler.set_timesteps(50)
    for place in (0, 20, 49):
        step = int(scheduler.timesteps[place])
        wanted = scheduler.step(velocity, step, latents).prev_sample
        steps = torch.tensor([step])
        assert torch.allclose(
            lcm.solver_step(latents, velocity, steps, steps - 20), wanted, atol=1e-5
        )


def test_half_of_the_predictions_are_taught_where_four_steps_lie() -> None:
    scheduler = LCMScheduler(**architecture.SCHEDULER)
    scheduler.set_timesteps(4)
    assert tuple(scheduler.timesteps.tolist()) == lcm.FOUR
    steps = lcm.choose_steps(2000, generator())
    assert int(steps.min()) == 19
    assert int(steps.max()) == 999
    assert 0.5 < sum(step in lcm.FOUR for step in steps.tolist()) / 2000 < 0.6


def test_at_the_end_the_latent_itself_is_the_picture() -> None:
    latents, velocity = torch.randn(2, 3, 4, 8, 8, generator=generator())
    none = torch.full((3,), -1)
    assert torch.equal(lcm.consistent(latents, velocity, none), latents)
    late = lcm.consistent(latents, velocity, torch.full((3,), 999))
    signal = diffusion.schedule().alphas_cumprod[999]
    picture = signal.sqrt() * latents - (1 - signal).sqrt() * velocity
    assert torch.allclose(late, picture, atol=1e-3)


def test_a_fresh_lora_changes_nothing_and_its_file_fuses_to_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    changed, plain = (architecture.unet(SHAPE).eval() for _ in range(2))
    plain.load_state_dict(changed.state_dict())
    given = {
        "sample": torch.randn(2, 4, SHAPE.latent_size, SHAPE.latent_size, generator=generator()),
        "timestep": torch.tensor([10, 500]),
        "encoder_hidden_states": torch.randn(2, 16, SHAPE.context, generator=generator()),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, SHAPE.projection, generator=generator()),
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2),
        },
    }

    def painted(model: torch.nn.Module) -> Tensor:
        with torch.no_grad():
            sample: Tensor = model(**given).sample
        return sample

    before = painted(changed)
    trained = Lora(changed, 4, lora.EVERYTHING)
    assert torch.equal(painted(changed), before)
    for layer in trained.layers:
        torch.nn.init.normal_(layer.weight, std=0.05)
    after = painted(changed)
    assert (after - before).abs().max() > 1e-2
    trained.save(tmp_path / "lora.safetensors")
    lora.fuse(plain, tmp_path / "lora.safetensors")
    assert torch.allclose(painted(plain), after, atol=2e-3)


def test_distillation_trains_the_lora_alone(
    text: TextFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(architecture, "SHAPES", SHAPE)
    first, second = (architecture.unet(SHAPE) for _ in range(2))
    second.load_state_dict(first.state_dict())
    shown = len(pool.prompts())
    frozen = Frozen(
        unet=first,
        latents=torch.randn(2000, 4, SHAPE.latent_size, SHAPE.latent_size, generator=generator()),
        text=text,
        images=torch.randn(shown, SHAPE.projection, generator=generator()),
        no_image=torch.zeros(SHAPE.projection),
        words=torch.nn.Identity(),
    )
    beside = adapter.Adapter(first, SHAPE, plus=False)
    distillation = lcm.Distillation(frozen, beside, second)
    before = {key: weight.clone() for key, weight in second.state_dict().items()}
    optimizer = torch.optim.AdamW(distillation.lora.parameters(), lr=5e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = distillation.loss(torch.arange(N), generator())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = second.state_dict()
    changed = {key for key, weight in before.items() if not torch.equal(after[key], weight)}
    assert changed
    assert all(".lora_" in key for key in changed)


# diffusers itself calls transformers' and torch's deprecated names.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_four_steps_without_guidance_paint_texts_and_image_prompts(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    trained = Lora(architecture.unet(SHAPE), 4, lora.EVERYTHING)
    trained.save(folder / layout.FAST_LORA)
    painter = Painter(folder, layout.FAST_LORA)
    image = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    for order in (Order(["a star"] * 3, 0), Order(["a star"] * 3, 0, image=image)):
        painted = painter.paint(order)
        assert painted.shape == (3, 3, 64, 64)
        assert torch.equal(painted, painter.paint(order))


# diffusers itself calls transformers' and torch's deprecated names.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("network", [layout.CONTROLNET, layout.SKETCH])
def test_a_map_of_either_kind_of_network_changes_the_picture(
    tiny_model: Path, tmp_path: Path, network: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    torch.manual_seed(0)
    t2i.empty(SHAPE).save_pretrained(folder / layout.SKETCH)
    painter = Painter(folder)
    image = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    order = Order([""] * 2, 0, image=image)
    plain = painter.paint(order)
    white = replace(order, control=torch.ones(2, 3, 64, 64), network=network)
    assert not torch.equal(painter.paint(white), plain)
    assert torch.equal(painter.paint(order), plain)
