"""The API console sends requests, from this host alone."""

import re
from collections.abc import Callable

from playwright.sync_api import expect

from service.core.settings import ROOT
from tests.browser.conftest import Visitor
from tests.stack import Service


def test_the_console_sends_a_picture_and_shows_the_job(
    make_visitor: Callable[..., Visitor], service: Service
) -> None:
    # Operations are drawn as they come into view.
    visitor = make_visitor(viewport={"width": 1280, "height": 3000})
    visitor.tolerated = {"script-src: eval "}  # a library of Scalar's asks once whether it may
    page = visitor.open(f"{service.api.url}/docs")
    for title in ("API keys", "Events", "Webhooks"):
        expect(page.get_by_role("heading", name=title, exact=True).first).to_be_attached()
    page.get_by_role("button", name="Test Request").first.click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Select File").first.click()
    chooser.value.set_files(ROOT / "examples" / "red-star.png")
    page.get_by_role("button", name=re.compile("^Send")).first.click()
    expect(page.get_by_text("200 OK").first).to_be_visible()
    assert service.client.get("/jobs").json()["jobs"][0]["status"] == "succeeded"


def test_without_scripts_it_leads_to_the_page_without_scripts(
    make_visitor: Callable[..., Visitor], service: Service
) -> None:
    visitor = make_visitor(java_script_enabled=False)
    page = visitor.context.new_page()
    page.goto(f"{service.api.url}/docs")
    page.get_by_role("link", name="without").click()
    expect(page.get_by_role("heading", name="POST /generate")).to_be_visible()
