"""The page where an API key is needed."""

import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from service import api_keys
from tests.browser.conftest import Visitor, accessible, example, finished, job_of, setting
from tests.running import redis_client, until
from tests.stack import Service


@pytest.fixture
def key(service: Service) -> Iterator[str]:
    """A key; while there is one, one is needed."""
    with redis_client(str(service.settings["redis_url"])) as redis:
        made, record = api_keys.make_key("browser", now=time.time())
        api_keys.save(redis, record)
        until(lambda: service.client.get("/jobs").status_code == 401, what="the need of a key")
        yield made
        api_keys.revoke(redis, record.id)
        until(lambda: service.client.get("/jobs").status_code == 200, what="the end of that need")


def test_it_asks_for_a_key_and_keeps_it_in_its_tab(
    make_visitor: Callable[..., Visitor], service: Service, key: str
) -> None:
    visitor = make_visitor()
    page = visitor.open(service.api.url)
    example(page)
    setting(page, "steps", 4)
    page.get_by_role("button", name="Generate").click()
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_contain_text("This service needs an API key. Ask its operator for one.")
    accessible(page)
    dialog.get_by_label("Key").fill("wrong")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog.get_by_role("alert")).to_contain_text("This API key is not valid")
    dialog.get_by_label("Key").fill(key)
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_have_count(0)
    job_of(page)
    expect(page.get_by_role("region", name="Result")).to_be_focused()
    finished(page)
    page.reload()
    finished(page)
    expect(page.get_by_role("heading", name="Your jobs")).to_be_visible()
    assert not [url for url in visitor.requests if key in url]
    assert page.evaluate("JSON.stringify(localStorage)").find(key) == -1
    other = visitor.open(service.api.url)
    expect(other.get_by_role("button", name="API key: none")).to_be_visible()
