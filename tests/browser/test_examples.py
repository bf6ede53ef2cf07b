"""The example pages, in a browser, as a reader would open them."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.conftest import StackMaker
from tests.harness import ROOT, Stack, eventually
from tests.stored import row

EXAMPLES = ROOT / "examples"
EVENT_SOURCE = EXAMPLES / "eventsource.html"
CLOSED = 2
REMEMBER_IDS = """() => {
  window.ids = [];
  sources[0].addEventListener("message", ({ lastEventId }) => ids.push(Number(lastEventId)));
}"""

expect.set_options(timeout=20_000)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served() -> Iterator[str]:
    """The origin of a plain file server of the examples, which knows nothing of Runtail."""
    handler = functools.partial(_Quiet, directory=str(EXAMPLES))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(params=["from the file", "from another server"])
def address(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Where the page is, and the origin that it has there."""
    if request.param == "from the file":
        yield EVENT_SOURCE.as_uri(), "null"
        return
    with served() as origin:
        yield f"{origin}/{EVENT_SOURCE.name}", origin


def status(page: Page) -> Locator:
    return page.locator("#status")


def only_run(server: Stack) -> str:
    """The id of the one run that there is."""
    runs = server.http.get("/runs").json()["runs"]
    assert len(runs) == 1
    run_id: str = runs[0]["run_id"]
    return run_id


def test_the_page_of_twenty_lines_is_that() -> None:
    lines = EVENT_SOURCE.read_text().splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 120


def test_the_page_of_twenty_lines_shows_an_answer_across_a_restart_of_the_server(
    page: Page, stack: StackMaker, address: tuple[str, str]
) -> None:
    url, origin = address
    server = stack(CORS_ORIGINS=origin)
    web = server.start_web()
    server.start_worker()
    page.goto(f"{url}?server={server.url}")
    expect(page.locator("#answer")).to_contain_text("Thank you")
    page.evaluate(REMEMBER_IDS)
    run_id = only_run(server)
    web.stop()
    assert row(server, run_id).finished_at is None
    server.start_web()
    expect(status(page)).to_have_text("run.completed")
    expect(page.locator("#answer")).to_have_text(server.read(run_id)["state"]["answer"]["text"])
    eventually(lambda: page.evaluate("sources[0].readyState") == CLOSED, what="the end of the EventSource")
    ids = page.evaluate("ids")
    assert ids == list(range(ids[0], server.read(run_id)["state_seq"] + 1)), "it went on where it was"
    assert page.evaluate("sources.length") == 1
