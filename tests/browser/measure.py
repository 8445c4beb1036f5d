"""`python -m tests.browser.measure`: what the page sends, and how soon it is there.

Starts the service with the bundled model on this machine. Each figure is of a browser that was
never here; the second visit has what the first one kept.
"""

import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from service.cli.processes import RedisServer
from service.core.settings import ROOT
from tests.browser.conftest import CHROMIUM, FLAGS
from tests.stack import Service

VISITS = 5
TIMING = """async () => {
  await new Promise((painted) => {
    const wanted = "first-contentful-paint";
    new PerformanceObserver((list, itself) => {
      if (!list.getEntriesByName(wanted).length) return;
      itself.disconnect();
      painted();
    }).observe({ type: "paint", buffered: true });
  });
  const [visit] = performance.getEntriesByType("navigation");
  const all = [visit, ...performance.getEntriesByType("resource")];
  const paints = performance.getEntriesByType("paint");
  const first = paints.find((one) => one.name === "first-contentful-paint");
  return {
    requests: all.length,
    sent_bytes: all.reduce((sum, one) => sum + one.transferSize, 0),
    unpacked_bytes: all.reduce((sum, one) => sum + one.decodedBodySize, 0),
    first_paint_ms: Math.round(first.startTime),
  };
}"""


def figures(page: Page, url: str) -> dict[str, int]:
    """Of one visit, until the form can be used."""
    started = time.monotonic()
    page.goto(url)
    page.get_by_role("button", name="Generate").wait_for()
    usable = round(1000 * (time.monotonic() - started))
    page.wait_for_load_state("networkidle")
    found: dict[str, int] = page.evaluate(TIMING)
    return found | {"usable_ms": usable}


def first_picture_seconds(page: Page, url: str) -> float:
    """From opening the page, by an example and the defaults, until the picture stands there."""
    started = time.monotonic()
    page.goto(url)
    page.get_by_role("button", name="Use the example red star").click()
    page.get_by_alt_text("Image prompt: red-star.png").wait_for()
    page.get_by_role("button", name="Generate").click()
    page.locator('a.primary[download][href^="blob:"]').wait_for()
    return time.monotonic() - started


def main() -> None:
    """Print the figures of some visits and their medians."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        redis = RedisServer(folder / "redis")
        redis.start()
        settings = {
            "models": ROOT / "models" / "shapes.yaml",
            "redis_url": redis.url,
            "storage_url": (folder / "storage").as_uri(),
        }
        service = Service(settings, folder).start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            for _ in range(VISITS):
                context = browser.new_context()
                page = context.new_page()
                print("first visit ", figures(page, service.api.url))  # noqa: T201
                print("second visit", figures(page, service.api.url))  # noqa: T201
                picture = first_picture_seconds(browser.new_context().new_page(), service.api.url)
                print(f"first picture after {picture:.1f} s")  # noqa: T201
                context.close()
            console = browser.new_context().new_page()
            console.goto(f"{service.api.url}/docs")
            console.wait_for_load_state("networkidle")
            print("console     ", console.evaluate(TIMING))  # noqa: T201
        finally:
            browser.close()
            service.stop()
            redis.stop()


if __name__ == "__main__":
    main()
