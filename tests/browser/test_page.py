"""From a dropped file to the picture, and what may come between."""

import io
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat
from playwright.sync_api import Page, Request, Route, expect

from service.core.picture_metadata import read_recipe
from service.core.settings import ROOT
from tests.browser.conftest import (
    Visitor,
    accessible,
    drop,
    example,
    finished,
    generate,
    job_of,
    setting,
)
from tests.proxy import Mode, Proxy
from tests.stack import Service

STAR = (ROOT / "examples" / "red-star.png").read_bytes()
RING = (ROOT / "examples" / "blue-ring.png").read_bytes()
SQUARE = (ROOT / "examples" / "green-square.png").read_bytes()
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}

PASTE = """async () => {
  const canvas = new OffscreenCanvas(32, 32);
  canvas.getContext("2d").fillRect(0, 0, 9, 9);
  const blob = await canvas.convertToBlob();
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([blob], "shot.png", { type: "image/png" }));
  document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
}"""

TWICE = """() => {
  const keys = { key: "Enter", ctrlKey: true, bubbles: true, cancelable: true };
  for (let times = 0; times < 2; times++)
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", keys));
}"""

PAINTED = """(wanted) => {
  const canvas = document.querySelector(".easel canvas");
  const context = canvas.getContext("2d");
  const at = (share) => context.getImageData(share * canvas.width, canvas.height / 2, 1, 1).data[3];
  return String([at(0.25), at(0.75)]) === String(wanted);
}"""


def test_from_a_dropped_file_to_the_picture(page: Page, service: Service) -> None:
    expect(page.get_by_role("heading", name="Make a picture from a picture")).to_be_visible()
    accessible(page)
    form = page.get_by_role("form", name="Request")
    for phrase in ("Accept", "lambda", "name:scale", "server's", "default (def", "CLIP", "Init"):
        expect(form).not_to_contain_text(phrase)
    examples = page.locator(".examples").first
    expect(examples.get_by_role("img")).to_have_count(4)
    assert examples.locator("span").evaluate("(one) => one.getClientRects().length") == 1
    drop(page, page.locator(".drop").first, ("star.png", STAR))
    expect(page.get_by_alt_text("Image prompt: star.png")).to_be_visible()
    page.get_by_label("Text", exact=True).fill("on a teal background")
    setting(page, "steps", 6)
    accessible(page)
    job_id = generate(page)
    with page.expect_download() as download:
        finished(page).click()
    accessible(page)
    result = page.get_by_role("region", name="Result")
    expect(result.get_by_alt_text("on a teal background")).to_be_visible()
    expect(result.get_by_alt_text("Image prompt")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("Done: 1 picture")
    buttons = result.locator(".result .row > *").all()
    assert len({button.evaluate("(one) => one.offsetTop") for button in buttons}) == 1
    assert len(buttons) == 4
    data = Path(download.value.path()).read_bytes()
    assert data == service.image(job_id)
    made = read_recipe(Image.open(io.BytesIO(data)))
    assert made is not None
    assert made["prompt"] == "on a teal background"


def test_the_keyboard_alone_makes_a_picture(page: Page, service: Service) -> None:
    button = page.get_by_role("button", name="Use the example red star")
    button.wait_for()
    while not button.evaluate("(one) => one === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_alt_text("Image prompt: red-star.png")).to_be_visible()
    expect(page.locator("#f-image")).to_be_focused()
    page.get_by_label("Text", exact=True).focus()
    page.keyboard.type("on a pink background")
    setting(page, "steps", 4)
    before = len(service.client.get("/jobs?limit=100").json()["jobs"])
    page.evaluate(TWICE)
    finished(page)
    assert len(service.client.get("/jobs?limit=100").json()["jobs"]) == before + 1
    expect(page.locator("#f-steps")).to_be_focused()


def test_a_picture_is_pasted_anywhere(page: Page) -> None:
    page.get_by_role("button", name="Generate").wait_for()
    page.evaluate(PASTE)
    expect(page.get_by_alt_text("Image prompt: shot.png")).to_be_visible()


def test_an_error_stands_at_the_field_that_it_names(page: Page, service: Service) -> None:
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#f-image")).to_be_focused()
    expect(page.locator("#f-image-error")).to_contain_text("Add a picture")
    accessible(page)
    example(page)
    expect(page.get_by_role("alert")).to_have_count(0)
    setting(page, "steps", 999)
    setting(page, "width", 100)
    page.locator("details.fold").last.evaluate("(fold) => { fold.open = false }")
    page.get_by_role("button", name="Generate").click()
    steps = page.locator("#f-steps")
    expect(steps).to_have_attribute("aria-invalid", "true")
    described = steps.get_attribute("aria-describedby") or ""
    errors = [page.locator(f"#{one}") for one in described.split() if one.endswith("-error")]
    expect(errors[0]).to_have_text("Steps must be at most 100")
    summary = page.get_by_role("alert").get_by_role("listitem")
    expect(summary.filter(has_text="Width")).to_have_text("Width must be a multiple of 8")
    expect(steps).to_be_visible()
    expect(page.locator("#f-steps, #f-width").and_(page.locator(":focus"))).to_have_count(1)
    accessible(page)
    jobs = service.client.get("/jobs").json()["jobs"]
    assert all(job["input"]["steps"] != 999 for job in jobs)


def test_a_file_that_is_no_picture_is_refused_where_it_was_added(page: Page) -> None:
    page.get_by_role("button", name="Generate").wait_for()
    drop(page, page.locator(".drop").first, ("notes.png", b"not a picture"))
    expect(page.get_by_text("notes.png")).to_be_visible()
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("alert")).to_contain_text("notes.png is not a picture")
    expect(page.locator("#f-image-error")).to_contain_text("notes.png is not a picture")
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)
    accessible(page)


def long_job(page: Page) -> str:
    """One that is far from its end when its first preview is there."""
    example(page)
    for name, value in {"steps": 100, "width": 256, "height": 256, "num_images": 4}.items():
        setting(page, name, value)
    job_id = generate(page)
    expect(page.get_by_alt_text("Preview")).to_be_visible()
    return job_id


def test_a_running_job_shows_previews_and_can_be_canceled(page: Page, service: Service) -> None:
    job_id = long_job(page)
    expect(page.get_by_role("progressbar")).to_be_visible()
    accessible(page)
    expect(page.get_by_role("region", name="Result")).to_be_focused()
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("Canceled")
    expect(page.get_by_role("button", name="Generate")).to_be_focused()
    accessible(page)
    assert service.job(job_id)["status"] == "canceled"


def test_a_reload_in_the_middle_goes_on_with_the_job_and_the_form(
    page: Page, service: Service
) -> None:
    """The worker is held meanwhile, so that it is the middle."""
    example(page)
    setting(page, "steps", 20)
    [worker] = service.workers

    def hold(route: Route) -> None:
        worker.process.send_signal(signal.SIGSTOP)
        route.continue_()

    page.route("**/generate", hold)
    try:
        job_id = generate(page)
        page.reload()
        expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_visible()
        expect(page.get_by_alt_text("Image prompt: red-star.png")).to_be_visible()
        expect(page.locator("#f-steps")).to_have_value("20")
        accessible(page)
    finally:
        worker.process.send_signal(signal.SIGCONT)
    finished(page)
    assert job_of(page) == job_id
    expect(
        page.get_by_role("region", name="Result").get_by_alt_text("Image prompt")
    ).to_be_visible()


def test_a_broken_connection_is_taken_up_again(
    make_visitor: Callable[..., Visitor], service: Service
) -> None:
    with closing(Proxy(service.api.url)) as proxy:
        visitor = make_visitor()
        page = visitor.open(proxy.url)
        long_job(page)
        asked: list[str | None] = []

        def note(request: Request) -> None:
            if request.url.endswith("/events"):
                asked.append(request.headers.get("last-event-id"))

        page.on("request", note)
        lost = page.get_by_text("Connection lost; reconnecting…")
        proxy.mode = Mode.FAIL
        expect(lost).to_be_visible()
        proxy.mode = Mode.PASS
        expect(lost).to_have_count(0)
        page.get_by_role("button", name="Cancel", exact=True).click()
        expect(page.get_by_role("status")).to_have_text("Canceled")
        assert asked
        assert all(asked), "it goes on after the last event"
        visitor.requests = [url.replace(proxy.url, service.api.url) for url in visitor.requests]


def test_two_tabs_do_not_disturb_each_other(
    make_visitor: Callable[..., Visitor], service: Service
) -> None:
    visitor = make_visitor()
    one, other = visitor.open(service.api.url), visitor.open(service.api.url)
    example(one)
    example(other, "green square")
    setting(one, "steps", 4)
    setting(other, "steps", 5)
    jobs = [generate(one), generate(other)]
    for page in (one, other):
        finished(page)
    assert [job_of(one), job_of(other)] == jobs
    for page, name in ((one, "red-star"), (other, "green-square")):
        page.reload()
        finished(page)
        expect(page.get_by_alt_text(f"Image prompt: {name}.png")).to_have_count(1)
    assert [job_of(one), job_of(other)] == jobs


def test_the_same_seed_makes_the_same_picture_again(page: Page, service: Service) -> None:
    example(page)
    setting(page, "steps", 4)
    setting(page, "seed", 11)
    setting(page, "num_images", 2)
    page.get_by_label("Deterministic").check()
    first = service.succeeded(generate(page))
    again = page.get_by_role("button", name="Again with this seed")
    expect(again).to_have_count(2)
    before = page.url
    again.last.click()
    page.wait_for_url(lambda url: url != before)
    second = service.succeeded(job_of(page))
    assert [image["seed"] for image in second["images"]] == [12]
    assert second["images"][0]["sha256"] == first["images"][1]["sha256"]


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


def test_a_request_can_be_copied_as_code_that_runs(
    page: Page, service: Service, tmp_path: Path
) -> None:
    example(page)
    for name, picture in (("one.png", RING), ("red-star.png", SQUARE)):
        drop(page, page.locator("main"), (name, picture))
        expect(page.get_by_alt_text(f"Image prompt: {name}").last).to_be_visible()
    page.get_by_role("button", name="Remove one.png").click()
    start = page.locator(".drop", has=page.locator("#f-init_image"))
    drop(page, start, ("base.png", RING))
    for opener, tool in (("Paint a mask", "Fill"), ("Limit where it acts", "Invert")):
        page.get_by_role("button", name=opener).first.click()
        page.get_by_role("application", name="Mask").press("Space")
        page.get_by_role("button", name=tool).click()
        page.get_by_role("button", name="Use this mask").click()
        expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_label("Text", exact=True).fill('it\'s "$on" a pink background; @home')
    setting(page, "seed", 5)
    setting(page, "steps", 4)
    asked = service.succeeded(generate(page))["input"]
    page.get_by_text("This request as code").click()
    expect(page.get_by_text("the code calls this one red-star-2.png")).to_be_visible()
    for link in page.locator(".code a").all():
        with page.expect_download() as download:
            link.click()
        download.value.save_as(tmp_path / download.value.suggested_filename)
    named = {"base.png", "image-mask.png", "init-mask.png", "white-mask.png"}
    assert {path.name for path in tmp_path.iterdir()} - named == {"red-star.png", "red-star-2.png"}
    for language, command in {
        "curl": ["bash", "request"],
        "Python": [str(ROOT / ".venv" / "bin" / "python"), "request"],
        "JavaScript": ["node", "--input-type=module", "-"],
    }.items():
        page.get_by_role("button", name=language).click()
        code = page.get_by_role("region", name=f"The request in {language}").inner_text()
        (tmp_path / "request").write_text(code)
        if shutil.which(command[0]) is None:
            continue
        subprocess.run(command, cwd=tmp_path, check=True, input=code, text=True, timeout=120)
        assert service.client.get("/jobs").json()["jobs"][0]["input"] == asked, language


def test_the_history_leads_back_to_a_job(page: Page, service: Service) -> None:
    job_id = service.submit(image=STAR, prompt="long ago", seed=3, steps=4)
    service.succeeded(job_id)
    page.reload()
    entry = page.get_by_role("button", name=re.compile("^long ago"))
    entry.click()
    finished(page)
    assert job_of(page) == job_id
    page.get_by_role("button", name="Reuse these settings").click()
    expect(page.locator("#f-seed")).to_have_value("3")
    expect(page.get_by_text("Not in this browser.")).to_be_visible()
    accessible(page)
    page.go_back()
    expect(page.get_by_role("heading", name="Make a picture from a picture")).to_be_visible()
    for _ in range(13):
        service.submit(image=STAR, steps=1)
    page.reload()
    page.get_by_role("button", name="Show more").click()
    entries = page.locator(".entry")
    expect(entries.nth(13)).to_be_visible()
    shown = entries.count()
    page.set_viewport_size({"width": 1280, "height": 480})  # it has to scroll
    entries.last.click()
    finished(page)
    expect(entries.last).to_be_in_viewport()
    for _ in range(2):
        page.wait_for_load_state("networkidle")
        expect(entries).to_have_count(shown)
        expect(entries.last).to_have_attribute("aria-current", "true")
        expect(page.locator(".entry[aria-current]")).to_have_count(1)
        page.reload()


def test_it_fits_a_phone(make_visitor: Callable[..., Visitor], service: Service) -> None:
    page = make_visitor(**PHONE, color_scheme="dark").open(service.api.url)
    page.get_by_role("button", name="Take a photo").first.wait_for()
    accessible(page)
    page.get_by_role("button", name="Use the example red star").tap()
    setting(page, "steps", 4)
    page.get_by_role("button", name="Generate").tap()
    expect(finished(page)).to_be_in_viewport()
    page.locator(".job details").first.wait_for()
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 740})
        accessible(page)
        title = page.locator(".bar h1").bounding_box()
        links = page.locator(".bar nav").bounding_box()
        assert title is not None
        assert links is not None
        assert title["x"] + title["width"] <= links["x"]


def test_a_field_that_the_server_declares_appears_by_itself(page: Page) -> None:
    """A server of a later release is played by a change of what this one declares."""

    def declare(route: Route) -> None:
        answer = route.fetch()
        form = answer.json()
        form["schema"]["properties"]["eta"] = {"type": "number", "minimum": 0, "maximum": 1}
        del form["schema"]["properties"]["init_image"]
        route.fulfill(response=answer, body=json.dumps(form))

    page.get_by_role("button", name="Choose a picture to start from").wait_for()
    expect(page.locator("#f-eta")).to_have_count(0)
    page.route("**/form.json", declare)
    page.reload()
    setting(page, "eta", 0.5)
    expect(page.locator("#f-init_image")).to_have_count(0)
    example(page)
    with page.expect_request("**/generate") as sent:
        page.get_by_role("button", name="Generate").click()
    assert re.search(rb'name="eta"\r\n\r\n0.5\r\n', sent.value.post_data_buffer or b"")
    expect(page.get_by_role("alert")).to_contain_text("Eta")


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
    middle = tuple(side * share // 8 for share in (3, 5) for side in made.size)
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
        sent = {"name": "mask.png", "mimeType": "image/png", "buffer": file.getvalue()}
        dialog.locator("input[type=file]").set_input_files([sent])  # type: ignore[list-item]
        page.wait_for_function(PAINTED, arg=[left, right])

    halves = Image.new("L", (64, 64))
    halves.paste(255, (32, 0, 64, 64))
    load(halves, 0, 255)
    load(Image.merge("RGBA", [halves] * 4), 255, 0)
    text = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"not a picture"}
    dialog.locator("input[type=file]").set_input_files([text])  # type: ignore[list-item]
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


def test_the_colour_scheme_is_told(page: Page) -> None:
    button = page.get_by_role("button", name="Colours")
    seen = set()
    for name in ("as the system's", "light", "dark", "as the system's"):
        expect(button).to_have_accessible_name(f"Colours: {name}")
        seen.add(button.locator("path").get_attribute("d"))
        button.click()
    assert len(seen) == 3
