"""The API console sends requests, from this host alone."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from service.core.settings import ROOT
from service.openapi import describe
from tests.browser.conftest import Visitor, accessible, violations
from tests.stack import Service

OPENED = {"landmark-unique"}
"""Rules that the markup of Scalar 1.76.0 breaks where every group of operations is open: responses
of two operations have one name."""
REQUEST_FORM = {
    "aria-allowed-role",
    "aria-required-attr",
    "button-name",
    "landmark-no-duplicate-main",
    "landmark-unique",
    "presentation-role-conflict",
}
"""Rules that its form of a request breaks. No option of Scalar's changes either."""


def console(make_visitor: Callable[..., Visitor], service: Service, **options: Any) -> Page:
    """The console in a window that is high enough for all: it draws what comes into view."""
    viewport = {"width": options.pop("width", 1280), "height": options.pop("height", 40_000)}
    visitor = make_visitor(viewport=viewport, **options)
    visitor.tolerated = {"script-src: eval "}  # a library of Scalar's asks once whether it may
    page = visitor.open(f"{service.api.url}/docs")
    page.get_by_role("button", name="Test Request").first.wait_for()
    return page


def test_the_console_sends_a_picture_and_shows_the_job(
    make_visitor: Callable[..., Visitor], service: Service
) -> None:
    page = console(make_visitor, service, height=3000)
    for title in ("API keys", "Events", "Webhooks"):
        expect(page.get_by_role("heading", name=title, exact=True).first).to_be_attached()
    page.get_by_role("button", name="Test Request").first.click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Select File").first.click()
    chooser.value.set_files(ROOT / "examples" / "red-star.png")
    page.get_by_role("button", name=re.compile("^Send")).first.click()
    expect(page.get_by_text("200 OK").first).to_be_visible()
    assert service.client.get("/jobs").json()["jobs"][0]["status"] == "succeeded"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 400)])
def test_axe_finds_nothing_wrong_with_the_console(
    make_visitor: Callable[..., Visitor], service: Service, scheme: str, width: int
) -> None:
    page = console(make_visitor, service, color_scheme=scheme, width=width)
    accessible(page)
    groups = page.get_by_role("button", name="Show More")
    for closed in (3, 2, 1):
        expect(groups).to_have_count(closed)
        groups.first.click()
    document = describe()
    drawn = sum(map(len, [*document["paths"].values(), *document["webhooks"].values()]))
    expect(page.get_by_role("button", name="Test Request")).to_have_count(drawn)
    assert set(violations(page)) == OPENED


def test_the_form_of_a_request_breaks_only_rules_that_are_known(
    make_visitor: Callable[..., Visitor], service: Service
) -> None:
    page = console(make_visitor, service, height=3000)
    page.get_by_role("button", name="Test Request").first.click()
    page.get_by_role("button", name="Select File").first.wait_for()
    assert set(violations(page)) == REQUEST_FORM


def test_without_scripts_it_leads_to_the_page_without_scripts(
    make_visitor: Callable[..., Visitor], service: Service
) -> None:
    visitor = make_visitor(java_script_enabled=False)
    page = visitor.context.new_page()
    page.goto(f"{service.api.url}/docs")
    page.get_by_role("link", name="without").click()
    expect(page.get_by_role("heading", name="POST /generate")).to_be_visible()
