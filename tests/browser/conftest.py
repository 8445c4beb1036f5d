"""The page in a real Chromium, in front of the whole service with the bundled model."""

import base64
import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from service.cli.processes import RedisServer
from service.core.settings import ROOT
from tests.stack import Service

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
AXE = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
PATIENCE_MS = 90_000
"""How long a state may take to come on a busy machine."""
WATCH = """
window.broken = [];
document.addEventListener("securitypolicyviolation",
  (event) => window.broken.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`));
"""
DROP = """([target, files]) => {
  const transfer = new DataTransfer();
  for (const [name, type, data] of files) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type }));
  }
  const options = { bubbles: true, cancelable: true, dataTransfer: transfer };
  for (const kind of ["dragenter", "dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(kind, options));
  }
}"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is in this folder where there is no Chromium."""
    if CHROMIUM.exists():
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"there is no {CHROMIUM}"))


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service that `make serve` starts, with previews, shared by all browser tests.

    A job outlives a worker that a test stops for a while. Redis is its own: the databases of the
    shared one come round again, and this worker would take the jobs of later tests.
    """
    folder = tmp_path_factory.mktemp("service")
    redis = RedisServer(folder / "redis")
    redis.start()
    settings = {
        "models": ROOT / "models" / "shapes.yaml",
        "redis_url": redis.url,
        "storage_url": (folder / "storage").as_uri(),
        "preview_every_steps": 2,
        "lease_seconds": 300,
        "step_timeout_seconds": 300,
    }
    running = Service(settings, folder)
    running.start_api()
    running.add_worker(wait=False).wait("/healthz/ready", seconds=900)
    running.wait_ready()
    yield running
    running.stop()
    redis.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium; ended with the module, since its event loop would be in others' way."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


class Visitor:
    """Somebody with a browser of their own; sees to it that no page breaks a rule unseen."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context: BrowserContext = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE_MS)
        self.context.add_init_script(WATCH)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.pages: list[Page] = []
        self.tolerated: set[str] = set()
        """What a page's policy may have to stop."""

    def open(self, url: str) -> Page:
        """A new tab."""
        page = self.context.new_page()
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(url)
        self.pages.append(page)
        return page

    def close(self, *origins: str) -> None:
        """Fail for a script error, a breach of the page's policy or a request to another host."""
        found = {one for page in self.pages for one in page.evaluate("window.broken")}
        broken = sorted(found - self.tolerated)
        self.context.close()
        foreign = [url for url in self.requests if not url.startswith((*origins, "blob:", "data:"))]
        assert (self.errors, broken, foreign) == ([], [], [])


@pytest.fixture
def make_visitor(browser: Browser, service: Service) -> Iterator[Callable[..., Visitor]]:
    """Visitors with options of Playwright's `new_context`; all that they did is checked."""
    visitors: list[Visitor] = []

    def make(**options: Any) -> Visitor:
        visitor = Visitor(browser, **options)
        visitors.append(visitor)
        return visitor

    yield make
    for visitor in visitors:
        visitor.close(service.api.url)


@pytest.fixture
def page(make_visitor: Callable[..., Visitor], service: Service) -> Page:
    """The page, opened by a visitor who was never here."""
    return make_visitor().open(service.api.url)


def drop(page: Page, target: Locator, *files: tuple[str, bytes]) -> None:
    """Drop files on an element, as from a folder of the desktop."""
    listed = [
        [name, f"image/{name.rsplit('.', 1)[1]}", base64.b64encode(data).decode()]
        for name, data in files
    ]
    page.evaluate(DROP, [target.element_handle(), listed])


def violations(page: Page) -> dict[str, list[str]]:
    """What axe-core finds wrong: the elements by the rule that they break."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run().then((result) => result.violations)")
    return {one["id"]: [node["html"] for node in one["nodes"]] for one in found}


def accessible(page: Page) -> None:
    """Nothing that axe-core finds wrong, and nothing wider than the window."""
    window = page.viewport_size
    assert window is not None
    # `innerWidth` of a phone grows with what is too wide.
    assert page.evaluate("document.documentElement.scrollWidth") <= window["width"]
    assert violations(page) == {}


def job_of(page: Page) -> str:
    """The id of the job that a page shows."""
    page.wait_for_url("**/#job=*")
    return page.url.partition("#job=")[2]


def generate(page: Page) -> str:
    """Press the button; the id of the new job."""
    before = page.url
    page.get_by_role("button", name="Generate").click()
    page.wait_for_url(lambda url: url != before)
    return job_of(page)


def example(page: Page, name: str = "red star") -> None:
    """Take one of the examples."""
    page.get_by_role("button", name=f"Use the example {name}").click()


def setting(page: Page, name: str, value: object) -> None:
    """Set a field of the form, unfolding what it is folded into."""
    page.get_by_text("More settings").evaluate("(summary) => { summary.parentElement.open = true }")
    page.locator(f"#f-{name}").fill(str(value))


def finished(page: Page) -> Locator:
    """The link to the finished picture, once there is one."""
    link = page.get_by_role("link", name="Download")
    expect(link).to_have_attribute("href", re.compile("^blob:"))
    return link
