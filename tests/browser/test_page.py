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

from PIL import Image
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

LINES = """(element) => {
  const range = document.createRange();
  range.selectNodeContents(element);
  return range.getClientRects().length;
}"""
TWICE = """() => {
  const keys = { key: "Enter", ctrlKey: true, bubbles: true, cancelable: true };
  for (let times = 0; times < 2; times++)
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", keys));
}"""


def test_from_a_dropped_file_to_the_picture(page: Page, service: Service) -> None:
    expect(page.get_by_role("heading", name="Make a picture from a picture")).to_be_visible()
    accessible(page)
    form = page.get_by_role("form", name="Request")
    for phrase in ("Accept", "lambda", "name:scale", "server's", "default (def", "CLIP", "Init"):
        expect(form).not_to_contain_text(phrase)
    examples = page.locator(".examples").first
    expect(examples.get_by_role("img")).to_have_count(4)
    assert examples.locator("span").evaluate(LINES) == 1
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
    page.locator(".job").wait_for()
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


def test_the_colour_scheme_is_told(page: Page) -> None:
    button = page.get_by_role("button", name="Colours")
    seen = set()
    for name in ("as the system's", "light", "dark", "as the system's"):
        expect(button).to_have_accessible_name(f"Colours: {name}")
        seen.add(button.locator("path").get_attribute("d"))
        button.click()
    assert len(seen) == 3
