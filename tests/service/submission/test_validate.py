"""What a request means as a whole: defaults filled in, wrong combinations named."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.catalog import Catalog, Lora, load_catalog
from service.core.errors import InvalidField
from service.core.param_types import MAX_SEED, StoredUpload
from service.core.params import GenerateRequest
from service.core.schema import parse_form, show
from service.submission.validate import size_like, validate

MODELS = Path(__file__).parents[3] / "models"


def catalog() -> Catalog:
    """The bundled model, as if it had LoRAs as well."""
    bundled = load_catalog(MODELS / "shapes.yaml")
    entry = bundled.models["shapes"]
    lora = Lora(path=Path("x"), weight_name="x.safetensors")
    entry = entry.model_copy(update={"loras": {"pencil": lora, "ink": lora}})
    return bundled.model_copy(update={"models": {"shapes": entry}})


CATALOG = catalog()


def upload(name: str, width: int = 64, height: int = 64) -> StoredUpload:
    """A file as it is stored."""
    return StoredUpload(
        key=f"uploads/a/{name.replace('_', '-')}.png",
        sha256="a" * 64,
        pixels_sha256="b" * 64,
        width=width,
        height=height,
    )


def request(
    texts: dict[str, str] | None = None, size: tuple[int, int] = (64, 64), **files: int
) -> GenerateRequest:
    """The request of a form with one image prompt and these files."""
    counts = {"image": 1} | files
    sent = parse_form(GenerateRequest, texts or {})
    valid = validate(sent, counts, CATALOG, seed=7, output_format="png")
    stored = {name: [upload(name, *size)] * count for name, count in counts.items()}
    return valid.with_uploads(stored)


def wrong(texts: dict[str, str], **files: int) -> dict[str, str]:
    """The fields that are refused, and why."""
    with pytest.raises(InvalidField) as refused:
        request(texts, **files)
    assert len(refused.value.errors) == len({one.field for one in refused.value.errors})
    return {one.field: one.message for one in refused.value.errors}


def test_one_value_stands_for_all_maps() -> None:
    made = request({"control_scale": "0.5", "control_end": "0.4,0.8"}, control_image=2)
    assert made.control_scale == (0.5, 0.5)
    assert made.control_end == (0.4, 0.8)
    assert made.control_type == ("outline", "outline")
    assert [control.end for control in made.controls] == [0.4, 0.8]
    shown = show(made)
    assert shown["control_scale"] == [0.5, 0.5]
    assert len(shown["control_image"]) == 2
    alone = show(request({"control_scale": "0.5"}, control_image=1))
    assert alone["control_scale"] == 0.5
    assert alone["control_image"]["sha256"] == "a" * 64


def test_every_image_has_an_adapter() -> None:
    made = request({"image_adapter": "base,plus", "ip_scale": "0.3,0.9"}, image=2)
    assert made.ip_scales == {"base": 0.3, "plus": 0.9}
    assert [image.adapter for image in made.images] == ["base", "plus"]
    assert request({"adapter": "plus"}, image=2).ip_scales == {"plus": 1.0}
    assert request({"image_adapter": "plus"}, image=2).image_adapter == ("plus", "plus")


def test_strength_depends_on_the_mask() -> None:
    assert request(init_image=1).strength == 0.6
    assert request(init_image=1, mask_image=1).strength == 1.0
    assert request({"strength": "0.3"}, init_image=1).strength == 0.3
    assert request(init_image=1).row_steps < request().row_steps


def test_an_init_image_gives_the_output_its_shape() -> None:
    made = request(size=(100, 200), init_image=1)
    assert made.width * 2 == pytest.approx(made.height, abs=8)
    fixed = request({"width": "128"}, size=(100, 200), init_image=1)
    assert (fixed.width, fixed.height) == (128, 128)


@given(
    width=st.integers(1, 8192),
    height=st.integers(1, 8192),
    model=st.sampled_from(["shapes", "sdxl"]),
)
def test_any_shape_leads_to_a_size_that_is_served(width: int, height: int, model: str) -> None:
    entry = load_catalog(MODELS / f"{model}.yaml").models[model]
    found = size_like(upload("init", width, height), entry)
    assert entry.allows(*found)
    assert [side % 8 for side in found] == [0, 0]
    if 0.8 < width / height < 1.25:
        assert found[0] / found[1] == pytest.approx(width / height, rel=0.15)


@pytest.mark.parametrize(
    ("texts", "files", "named"),
    [
        ({}, {"mask_image": 1}, {"mask_image"}),
        ({"mask_blur": "4"}, {"init_image": 1}, {"mask_blur"}),
        ({"strength": "0.5"}, {}, {"strength"}),
        ({"strength": "0"}, {"init_image": 1}, {"strength"}),
        ({"strength": "0.2", "steps": "4"}, {"init_image": 1}, {"strength"}),
        ({"control_type": "outline,outline"}, {"control_image": 3}, {"control_type"}),
        ({"control_type": "outline,depth"}, {"control_image": 2}, {"control_type"}),
        ({"control_scale": "1,2,3"}, {"control_image": 1}, {"control_scale"}),
        (
            {"control_start": "0,0.9", "control_end": "0.9,0.5"},
            {"control_image": 2},
            {"control_start"},
        ),
        ({"control_preprocess": "magic"}, {"control_image": 1}, {"control_preprocess"}),
        ({"control_preprocess": "depth"}, {"control_image": 1}, {"control_preprocess"}),
        ({"control_preprocess": "canny"}, {}, {"control_preprocess"}),
        ({"image_adapter": "base,plus,base"}, {"image": 2}, {"image_adapter"}),
        ({"image_adapter": "base,nope"}, {"image": 2}, {"image_adapter"}),
        ({"ip_scale": "0.1,0.2"}, {"image": 2}, {"ip_scale"}),
        ({"ip_start": "0.5", "ip_end": "0.5"}, {}, {"ip_start"}),
        ({"ip_target": "mood"}, {}, {"ip_target"}),
        ({}, {"image": 2, "image_mask": 1}, {"image_mask"}),
        ({"guidance_scale": "1"}, {"negative_image": 1}, {"negative_image"}),
        ({"guidance_start": "0.5", "guidance_end": "0.4"}, {}, {"guidance_start"}),
        ({"lora": "charcoal:1"}, {}, {"lora"}),
        ({"lora": "pencil:1,pencil:0.5"}, {}, {"lora"}),
        ({"lora": "pencil:2.5"}, {}, {"lora"}),
        ({"lora": "pencil:"}, {}, {"lora"}),
        ({"lora": "pencil,ink,pencil,ink,pencil"}, {}, {"lora"}),
        ({"scheduler": "ddim", "sigmas": "karras"}, {}, {"sigmas"}),
        ({"clip_skip": "5"}, {}, {"clip_skip"}),
        ({"seed": str(MAX_SEED), "num_images": "2"}, {}, {"seed"}),
        ({"seed": str(MAX_SEED + 1)}, {}, {"seed"}),
        ({}, {"image": 0}, {"image"}),
        ({"image_weights": "1"}, {"image": 0}, {"image", "image_weights"}),
    ],
)
def test_a_wrong_combination_is_named(
    texts: dict[str, str], files: dict[str, int], named: set[str]
) -> None:
    assert set(wrong(texts, **files)) == named


INVISIBLE = [
    *("\u3164", "\uffa0", "\u2800", "\u034f", "\ufe0f", "\u180b", "\u115f", "\u17b4", "\u2065"),
    *("\ufff0", "\U0001d159", "\U0001d173", "\U000e0100", "\U000e0fff \u3164"),
]


@pytest.mark.parametrize(
    "blank", ["", "  ", "\n\t\r\n", "\u200b\u200d\ufeff", "\u3000 \u2028\0", *INVISIBLE]
)
def test_a_text_that_shows_nothing_is_none(blank: str) -> None:
    made = request({"prompt": blank, "negative_prompt": blank})
    assert (made.prompt, made.negative_prompt) == ("", "")
    assert made.ip_scale == (1.0,)
    assert request({"prompt": f"{blank}."}).ip_scale == (0.5,)


def test_every_seed_of_a_job_can_be_sent_again() -> None:
    made = request({"seed": str(MAX_SEED - 3), "num_images": "4"})
    for number in range(made.num_images):
        assert request({"seed": str(made.seed + number)}).seed == made.seed + number


def test_a_model_without_loras_or_controlnets_says_so() -> None:
    entry = CATALOG.models["shapes"].model_copy(
        update={"controlnets": {}, "t2i_adapters": {}, "loras": {}}
    )
    bare = CATALOG.model_copy(update={"models": {"shapes": entry}})
    sent = parse_form(GenerateRequest, {"lora": "pencil"})
    with pytest.raises(InvalidField) as refused:
        validate(sent, {"image": 1, "control_image": 1}, bare, seed=1, output_format="png")
    assert {one.field for one in refused.value.errors} == {"lora", "control_image"}


def test_a_request_without_images_is_possible_where_it_is_asked_for() -> None:
    sent = parse_form(GenerateRequest, {"prompt": "a red star"})
    valid = validate(sent, {}, CATALOG, requires_images=False, seed=1, output_format="png")
    made = valid.with_uploads({"image": []})
    assert (made.images, made.ip_scales) == ((), {})


def test_a_long_list_of_wrong_values_gets_a_short_answer() -> None:
    with pytest.raises(InvalidField) as refused:
        parse_form(GenerateRequest, {"image_weights": "x," * 16_000, "steps": "0"})
    assert {one.field for one in refused.value.errors} == {"image_weights", "steps"}
    assert len(refused.value.detail) < 500


def fields_of(request: GenerateRequest) -> dict[str, Any]:
    """Every field of a request."""
    return {name: getattr(request, name) for name in GenerateRequest.model_fields}


def test_a_request_reads_back_as_it_was_written() -> None:
    made = request({"lora": "pencil:0.5,ink"}, control_image=2, init_image=1, image=2)
    again = GenerateRequest.model_validate_json(made.model_dump_json())
    assert fields_of(again) == fields_of(made)
    assert again.loras == {"pencil": 0.5, "ink": 1.0}


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (field, text)
        for field in ("ip_scale", "image_weights", "steps", "guidance_scale", "seed", "ip_end")
        for text in (
            "\u0661",
            "0_1",
            "1_0",
            "\uff11",
            "1\u00b2",
            "0x1",
            "nan",
            "inf",
            "1\u3000",
            "--1",
        )
    ],
)
def test_numbers_in_a_form_are_plain_decimal_digits(field: str, text: str) -> None:
    for texts in (text, f"1,{text}", f"{text},1"):
        with pytest.raises(InvalidField) as caught:
            parse_form(GenerateRequest, {field: texts})
        assert [error.field for error in caught.value.errors] == [field]


@pytest.mark.parametrize("text", ["1", " 1", "1.0", "+1", "01"])
def test_plain_numbers_in_a_form_are_taken(text: str) -> None:
    fields = dict.fromkeys(("ip_scale", "image_weights", "steps", "guidance_scale", "seed"), text)
    sent: Any = parse_form(GenerateRequest, fields)
    assert (sent.ip_scale, sent.image_weights, sent.steps, sent.seed) == ((1.0,), (1.0,), 1, 1)
    assert (
        parse_form(GenerateRequest, {"guidance_scale": "1e1"}).model_dump()["guidance_scale"] == 10
    )
