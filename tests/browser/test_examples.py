"""The example pages, in a browser, as a reader would open them."""

import functools
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.conftest import StackMaker
from tests.harness import ROOT, Stack, eventually, free_port
from tests.legacy_apps import STEPS, TEXT, Legacy, legacy_app
from tests.stored import row
from tests.test_proxy_example import ENDLESS, Proxy

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


# The proxy of nextjs-proxy.md.


def test_an_event_source_rides_through_a_restart_behind_the_proxy(page: Page, stack: StackMaker) -> None:
    server = stack()
    web = server.start_web()
    server.start_worker()
    with closing(Proxy(server)) as proxy:
        node = proxy.start()
        origin = f"http://127.0.0.1:{proxy.port}"
        page.context.add_cookies([{"name": "user", "value": "alice", "url": origin}])
        run_id = proxy.start_run(ENDLESS)
        page.goto(f"{origin}/api/agents")
        page.evaluate("(url) => { new EventSource(url); }", f"/api/runs/{run_id}/events?named=0")
        page.evaluate(REMEMBER_IDS)
        eventually(lambda: page.evaluate("ids.length") > 5, what="the first events")
        web.stop()
        eventually(lambda: server_is_away(page, origin), what="the proxy's word that the server is away")
        seen = page.evaluate("ids.length")
        server.start_web()
        eventually(lambda: page.evaluate("ids.length") > seen + 5, 20, "more events")
        proxy.as_user("alice").post(f"/api/runs/{run_id}/cancel")
        eventually(lambda: page.evaluate("sources[0].readyState") == CLOSED, 20, "the end of the EventSource")
        ids = page.evaluate("ids")
        assert ids == list(range(ids[0], row(server, run_id).state_seq + 1))
        node.kill()


def server_is_away(page: Page, origin: str) -> bool:
    """Whether the proxy answers in the server's place."""
    away: bool = page.evaluate("async (url) => (await fetch(url)).status === 502", f"{origin}/api/agents")
    return away


# The live page of the old app.


@pytest.fixture
def legacy(stack: StackMaker, environment: dict[str, str]) -> Iterator[Legacy]:
    """The app with the page, slow enough to do something meanwhile, and a server whose runs its origin may read."""
    port = free_port()
    runtail = stack(CORS_ORIGINS=f"http://127.0.0.1:{port}")
    runtail.start_web()
    with legacy_app(runtail, environment, port, pause=0.7) as legacy:
        legacy.flask()
        legacy.worker()
        yield legacy


def ask(page: Page, legacy: Legacy) -> None:
    """Ask for a report as a user does, and see it begin."""
    page.goto(legacy.url)
    page.get_by_label("Customer").fill("ann")
    page.get_by_role("button", name="Report, live").click()
    expect(page.locator("#text")).to_contain_text("Ann has ordered 3 times.")
    expect(status(page)).to_have_text("At work")


def shows_the_whole_report_once(page: Page) -> None:
    expect(status(page)).to_have_text("Done")
    expect(page.locator("#text")).to_have_text(TEXT)
    expect(page.get_by_role("listitem")).to_have_text(STEPS)


def test_the_live_page_survives_a_reload(page: Page, legacy: Legacy) -> None:
    ask(page, legacy)
    page.reload()
    expect(status(page)).to_have_text("At work")
    shows_the_whole_report_once(page)
    page.reload()
    shows_the_whole_report_once(page)


def test_the_live_page_shows_nothing_twice_when_the_job_is_killed(page: Page, legacy: Legacy) -> None:
    ask(page, legacy)
    legacy.horse().kill()
    expect(page.get_by_role("listitem")).to_have_count(1)
    shows_the_whole_report_once(page)


def test_the_stop_button_of_the_live_page_stops_the_job(page: Page, legacy: Legacy) -> None:
    ask(page, legacy)
    page.get_by_role("button", name="Stop").click()
    expect(status(page)).to_have_text("Stopped")
    expect(page.locator("#text")).not_to_contain_text("That makes")
    legacy.idle()
