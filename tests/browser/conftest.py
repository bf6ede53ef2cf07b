"""A real Chromium. Where there is none these tests are skipped, except in CI, where they fail."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.programs import give_up

FLAGS = [
    "--no-sandbox",  # runs as root in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "chromium-browser", "google-chrome")

REMEMBER_SOURCES = """
window.sources = [];
window.EventSource = class extends EventSource {
  constructor(url) { super(url); window.sources.push(this); }
};
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The browser of CHROMIUM, or the one on PATH."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        give_up("There is no chromium on PATH, and CHROMIUM names none.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page, which keeps its EventSources in `window.sources`. An uncaught error in it fails the test."""
    page = browser.new_page()
    page.set_default_timeout(20_000)
    page.add_init_script(REMEMBER_SOURCES)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors
