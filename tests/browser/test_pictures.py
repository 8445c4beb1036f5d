"""Pictures and masks that are added to the form."""

import io

import pytest
from PIL import Image, ImageChops, ImageStat
from playwright.sync_api import FilePayload, Page, expect

from service.core.settings import ROOT
from tests.browser.conftest import (
    accessible,
    drop,
    example,
    finished,
    generate,
    setting,
)
from tests.stack import Service

STAR = (ROOT / "examples" / "red-star.png").read_bytes()
RING = (ROOT / "examples" / "blue-ring.png").read_bytes()

PASTE = """async () => {
  const canvas = new OffscreenCanvas(32, 32);
  canvas.getContext("2d").fillRect(0, 0, 9, 9);
  const blob = await canvas.convertToBlob();
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([blob], "shot.png", { type: "image/png" }));
  document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
}"""
PAINTED = """(wanted) => {
  const canvas = document.querySelector(".easel canvas");
  const context = canvas.getContext("2d");
  const at = (share) => context.getImageData(share * canvas.width, canvas.height / 2, 1, 1).data[3];
  return String([at(0.25), at(0.75)]) === String(wanted);
}"""


def test_a_picture_is_pasted_anywhere(page: Page) -> None:
    page.get_by_role("button", name="Generate").wait_for()
    page.evaluate(PASTE)
    expect(page.get_by_alt_text("Image prompt: shot.png")).to_be_visible()


def test_a_file_that_is_no_picture_is_refused_where_it_was_added(page: Page) -> None:
    page.get_by_role("button", name="Generate").wait_for()
    drop(page, page.locator(".drop").first, ("notes.png", b"not a picture"))
    expect(page.get_by_text("notes.png")).to_be_visible()
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("alert")).to_contain_text("notes.png is not a picture")
    expect(page.locator("#f-image-error")).to_contain_text("notes.png is not a picture")
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)
    accessible(page)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_picture_made_here_gives_its_settings_back(
    page: Page, service: Service, kind: str
) -> None:
    """Its image prompt, too, since this browser has it."""
    example(page)
    expect(page.get_by_alt_text("Image prompt: red-star.png")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    job_id = service.submit(
        image=STAR, prompt="a “red” star", seed=77, steps=4, scheduler="euler", output_format=kind
    )
    service.succeeded(job_id)
    drop(page, page.locator("main"), (f"old.{kind}", service.image(job_id)))
    dialog = page.get_by_role("dialog", name="This picture was made here")
    dialog.wait_for()
    accessible(page)
    dialog.get_by_role("button", name="Restore its settings").click()
    expect(page.get_by_label("Text", exact=True)).to_have_value("a “red” star")
    expect(page.locator("#f-seed")).to_have_value("77")
    expect(page.locator("#f-steps")).to_have_value("4")
    expect(page.locator("#f-scheduler")).to_have_value("euler")
    expect(page.get_by_alt_text("Image prompt: red-star.png")).to_be_visible()


def test_each_adapter_in_use_has_a_strength_of_its_own(page: Page, service: Service) -> None:
    example(page)
    expect(page.get_by_role("spinbutton", name="Strength of the image")).to_have_count(1)
    drop(page, page.locator("main"), ("second.png", STAR))
    page.locator("#image-1-image_adapter").select_option("plus")
    page.locator("#ip_scale-base").fill("0.4")
    page.locator("#ip_scale-plus").fill("0.9")
    accessible(page)
    setting(page, "steps", 4)
    sent = service.succeeded(generate(page))["input"]
    assert (sent["image_adapter"], sent["ip_scale"]) == (["base", "plus"], [0.4, 0.9])
    page.get_by_role("button", name="Clear").click()
    page.reload()
    page.get_by_role("button", name="Again with this seed").click()
    expect(page.locator("#ip_scale-plus")).to_have_value("0.9")


def test_a_mask_is_painted_on_an_init_image(page: Page, service: Service) -> None:
    """With the keyboard; what is not painted keeps its pixels."""
    example(page)
    drop(page, page.locator(".drop", has=page.locator("#f-init_image")), ("base.png", RING))
    page.get_by_role("button", name="Paint a mask").click()
    expect(page.get_by_role("application", name="Mask")).to_be_focused()
    page.get_by_role("slider", name="Brush").press("End")
    page.get_by_role("application", name="Mask").press("Space")
    accessible(page)
    page.get_by_role("button", name="Use this mask").click()
    expect(page.get_by_role("button", name="Edit the mask")).to_be_focused()
    setting(page, "steps", 4)
    setting(page, "seed", 1)
    accessible(page)
    job = service.succeeded(generate(page))
    assert job["input"]["mask_image"] is not None
    assert not job.get("warnings")
    made = Image.open(io.BytesIO(service.image(job["id"]))).convert("RGB")
    ring = Image.open(io.BytesIO(RING)).convert("RGB").resize(made.size)
    assert made.getpixel((3, 3)) == pytest.approx(ring.getpixel((3, 3)), abs=24)
    middle = made.width * 3 // 8, made.height * 3 // 8, made.width * 5 // 8, made.height * 5 // 8
    changed = ImageStat.Stat(ImageChops.difference(made, ring).crop(middle))
    assert max(changed.mean) > 10
    finished(page)
    expect(page.get_by_role("region", name="Result").get_by_alt_text("Mask")).to_be_visible()
    page.get_by_role("button", name="Start from this").click()
    expect(page.get_by_alt_text("Picture to start from: imageprompt-")).to_be_visible()


def test_a_mask_is_loaded_as_the_service_reads_it(page: Page) -> None:
    start = page.locator(".drop", has=page.locator("#f-init_image"))
    page.get_by_role("button", name="Generate").wait_for()
    drop(page, start, ("photo.heic", b"\0\0\0\x18ftypheic, which no Chromium shows"))
    paint = page.get_by_role("button", name="Paint a mask")
    expect(page.get_by_text("This browser cannot show this file")).to_be_visible()
    expect(paint).to_be_disabled()
    page.get_by_role("button", name="Remove photo.heic").click()
    drop(page, start, ("base.png", RING))
    paint.click()
    dialog = page.get_by_role("dialog", name="Paint a mask")

    def load(mask: Image.Image, left: int, right: int) -> None:
        """The opacities of what is painted at both sides."""
        file = io.BytesIO()
        mask.save(file, "PNG")
        sent = FilePayload(name="mask.png", mimeType="image/png", buffer=file.getvalue())
        dialog.locator("input[type=file]").set_input_files(sent)
        page.wait_for_function(PAINTED, arg=[left, right])

    halves = Image.new("L", (64, 64))
    halves.paste(255, (32, 0, 64, 64))
    load(halves, 0, 255)
    load(Image.merge("RGBA", [halves] * 4), 255, 0)
    text = FilePayload(name="notes.txt", mimeType="text/plain", buffer=b"not a picture")
    dialog.locator("input[type=file]").set_input_files(text)
    expect(dialog.get_by_role("alert")).to_contain_text("notes.txt is not a picture")


def test_the_focus_stays_beside_a_picture_that_is_removed(page: Page) -> None:
    page.get_by_role("button", name="Generate").wait_for()
    add = page.locator("#f-image")
    for name in ("one.png", "two.png", "three.png"):
        drop(page, page.locator(".drop").first, (name, STAR))
        expect(page.get_by_alt_text(f"Image prompt: {name}")).to_be_visible()
    for name, successor in (("two.png", "three.png"), ("three.png", "one.png"), ("one.png", None)):
        page.get_by_role("button", name=f"Remove {name}").click()
        after = page.get_by_role("button", name=f"Remove {successor}") if successor else add
        expect(after).to_be_focused()
    drop(page, page.locator(".drop").first, *((f"{number}.png", STAR) for number in range(11)))
    expect(page.get_by_text("At most 8 pictures: 3 were left out.")).to_be_visible()
    expect(page.locator(".card")).to_have_count(8)
