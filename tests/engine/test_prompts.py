"""Long prompts are encoded in chunks, weights are read, and nothing is cut without a warning."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from service.core.catalog import Catalog
from service.core.params import GenerateRequest
from tests.engine.conftest import Stepper, job, request, uploads
from workers.engine.engine import Engine
from workers.engine.models.prompts import MAX_CHUNKS, fragments

CHUNK = 14
"""Tokens of the tiny model's prompts without the markers; its words are a token each."""
WORDS = ("red", "blue", "green", "star", "ring", "cross")
LONG = " ".join(WORDS[index % len(WORDS)] for index in range(CHUNK + 5))
REST = " ".join(LONG.split()[CHUNK:])
START = " ".join(LONG.split()[:CHUNK])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (red:1.3) cat", [("a ", 1), ("red", 1.3), (" cat", 1)]),
        ("(a:0.5)(b:2)", [("a", 0.5), ("b", 2)]),
        ("(much:9)", [("much", 9)]),
        ("a cat (small) :-) (x:)", [("a cat (small) :-) (x:)", 1)]),
    ],
)
def test_weights_are_read_and_other_brackets_are_text(
    text: str, expected: list[tuple[str, float]]
) -> None:
    assert list(fragments(text)) == expected


def test_a_long_prompt_is_its_chunks_one_after_the_other(
    stepper: Stepper, catalog: Catalog
) -> None:
    """As diffusers gives it for the joined embeddings of the chunks."""
    wanted = request(prompt=LONG, negative_prompt=f"{REST} {START}", ip_scale=0.0)
    stepper.run(job(wanted))
    pipe = StableDiffusionXLPipeline.from_pretrained(catalog.models["tiny"].base.location)
    pipe.set_progress_bar_config(disable=True)

    def embed(*chunks: str) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [pipe.encode_prompt(one, do_classifier_free_guidance=False) for one in chunks]
        return torch.cat([part[0] for part in parts], dim=1), parts[0][2]

    negative = wanted.negative_prompt.split()
    positive, pooled = embed(START, REST)
    against, against_pooled = embed(" ".join(negative[:CHUNK]), " ".join(negative[CHUNK:]))
    theirs = pipe(
        prompt_embeds=positive,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=against,
        negative_pooled_prompt_embeds=against_pooled,
        width=64,
        height=64,
        num_inference_steps=wanted.steps,
        guidance_scale=wanted.guidance_scale,
        generator=torch.Generator().manual_seed(wanted.seed),
        output_type="np",
    ).images
    assert np.abs(stepper.decoded("job") - theirs).max() <= 5e-5


def test_texts_of_different_lengths_share_batches(stepper: Stepper) -> None:
    """Each comes out as if it had run alone, with ControlNets and without guidance, too."""
    mixed = [
        request(prompt="a red star", seed=1),
        request(prompt=LONG, seed=2, control={}),
        request(prompt=f"{LONG} {LONG}", negative_prompt="blue", seed=3),
        request(prompt="a ring", seed=4, guidance_scale=1.0, control={}),
        request(prompt="a (red:1.5) ring", negative_prompt=LONG, seed=5),
    ]
    results = stepper.together(*(job(wanted, f"{i}") for i, wanted in enumerate(mixed)))
    assert max(result.max_batch for result in results) == 9
    assert not any(result.warnings for result in results)
    for index, wanted in enumerate(mixed):
        stepper.run(job(wanted, "alone"))
        assert stepper.difference("alone", f"{index}") <= 1e-4, f"row {index}"


def test_a_weight_makes_its_word_more_or_less_important(loaded: Engine) -> None:
    """1 changes nothing against the plain prompt, and 0 takes the word's own part away."""
    model = loaded.models["tiny"]

    def tokens(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model.encode_text(model.prompt(text), 0)["tokens"]

    plain = tokens("red star ring")
    assert torch.allclose(tokens("red (star:1.0001) ring"), plain, atol=1e-3)
    distances = [
        float((tokens(f"red (star:{weight}) ring") - plain).abs().max())
        for weight in (0.5, 0.8, 1.2, 1.5)
    ]
    assert distances[0] > distances[1] > 1e-3
    assert distances[3] > distances[2] > 1e-3


def test_what_is_cut_off_is_told(stepper: Stepper) -> None:
    """The job carries a warning that names the field."""
    endless = " ".join(["star"] * (CHUNK * MAX_CHUNKS + 1))
    (warning,) = stepper.run(job(request(prompt=endless))).warnings
    assert warning.code == "prompt-truncated"
    assert "`prompt`" in warning.message
    fits = " ".join(["star"] * (CHUNK * MAX_CHUNKS))
    assert stepper.run(job(request(prompt=fits))).warnings == ()


def test_a_window_without_a_step_is_told(stepper: Stepper) -> None:
    """A map that acts at no step is not passed over in silence."""
    wanted = request(control={"start": 0.1, "end": 0.2}, ip_start=0.9)
    assert codes(stepper, wanted) == ["window-without-step"] * 2
    wanted = request(guidance_start=0.1, guidance_end=0.2)
    assert codes(stepper, wanted) == ["window-without-step"]


def test_a_mask_that_lets_an_image_prompt_act_nowhere_is_told(stepper: Stepper) -> None:
    wanted = request(images=2, image_mask=uploads("left", "nothing"))
    assert codes(stepper, wanted) == ["mask-without-white"]


def test_what_has_no_effect_is_told(stepper: Stepper) -> None:
    wanted = request(prompt="a (red:9) star", negative_prompt="blue", guidance_scale=1.0)
    assert codes(stepper, wanted) == ["prompt-weight-limited", "negative-prompt-unused"]
    at_most = request(prompt="a (red:2) star", negative_prompt="blue")
    assert codes(stepper, at_most) == []


def codes(stepper: Stepper, wanted: GenerateRequest) -> list[str]:
    """The warnings of a job."""
    return [warning.code for warning in stepper.run(job(wanted)).warnings]
