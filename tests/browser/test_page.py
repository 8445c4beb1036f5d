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


def test_from_a_dropped_file_to_the_picture(page: Page, service: Service) -> None:
    expect(page.get_by_role("heading", name="Make a picture from a picture")).to_be_visible()
    accessible(page)
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
    expect(page.locator("#f-image-error")).to_contain_text("required")
    accessible(page)
    example(page)
    expect(page.get_by_role("alert")).to_have_count(0)
    setting(page, "steps", 999)
    setting(page, "width", 8)
    page.locator("details.fold").last.evaluate("(fold) => { fold.open = false }")
    page.get_by_role("button", name="Generate").click()
    steps = page.locator("#f-steps")
    expect(steps).to_have_attribute("aria-invalid", "true")
    described = steps.get_attribute("aria-describedby") or ""
    errors = [page.locator(f"#{one}") for one in described.split() if one.endswith("-error")]
    expect(errors[0]).to_contain_text("less than or equal")
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
    expect(page.get_by_role("alert")).to_contain_text("image")
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
    page.get_by_label("Text", exact=True).fill('it\'s "$on" a pink background; @home')
    setting(page, "seed", 5)
    setting(page, "steps", 4)
    asked = service.succeeded(generate(page))["input"]
    (tmp_path / "red-star.png").write_bytes(STAR)
    page.get_by_text("This request as code").click()
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
    expect(page.get_by_text("Not in this browser")).to_be_visible()
    accessible(page)
    page.go_back()
    expect(page.get_by_role("heading", name="Make a picture from a picture")).to_be_visible()


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

    page.get_by_role("button", name="Start from a picture").wait_for()
    expect(page.locator("#f-eta")).to_have_count(0)
    page.route("**/form.json", declare)
    page.reload()
    setting(page, "eta", 0.5)
    expect(page.get_by_role("button", name="Start from a picture")).to_have_count(0)
    example(page)
    with page.expect_request("**/generate") as sent:
        page.get_by_role("button", name="Generate").click()
    assert re.search(rb'name="eta"\r\n\r\n0.5\r\n', sent.value.post_data_buffer or b"")
    expect(page.get_by_role("alert")).to_contain_text("eta")


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
    page.get_by_role("button", name="Use as init image").click()
    expect(page.get_by_alt_text("Init image: imageprompt-")).to_be_visible()


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
