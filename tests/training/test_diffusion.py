"""Which steps the denoisers learn from."""

import torch

from training import diffusion


def test_every_step_may_be_drawn_and_most_lie_where_shapes_are_decided() -> None:
    chances = diffusion.chances()
    assert chances.shape == (1000,)
    assert chances.min() > 0
    torch.testing.assert_close(chances.sum(), torch.ones(()))
    # A signal-to-noise ratio of 0.02 to 20.
    assert chances[45:620].sum() > 0.8


def test_a_noised_latent_and_its_velocity_give_the_latent_back() -> None:
    latents = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    noised = diffusion.noise(latents, torch.Generator().manual_seed(0))
    signal = diffusion.schedule().alphas_cumprod[noised.steps].view(-1, 1, 1, 1)
    again = signal.sqrt() * noised.latents - (1 - signal).sqrt() * noised.target
    torch.testing.assert_close(again, latents)
    assert noised.loss(noised.target) == 0
