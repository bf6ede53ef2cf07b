"""The page as somebody in front of it meets it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Locator, Page, Request, Route, expect

from tests.conftest import StackMaker
from tests.harness import Stack, eventually
from tests.waiting import ended, waiting

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("*.ndjson"))
QUESTION = "Where is order 48291?"
CLOSED = 2
LONGER_THAN_A_RETRY_MS = 3_000
"""Above the server's `retry:` and the page's own first waits."""

expect.set_options(timeout=20_000)


def start(server: Stack, latency_scale: float) -> str:
    return server.start("support", {"message": QUESTION, "latency_scale": latency_scale})


def open_run(page: Page, server: Stack, run_id: str) -> None:
    page.goto(f"{server.url}/#{run_id}")


def status(page: Page) -> Locator:
    return page.get_by_role("status")


def answer(page: Page) -> Locator:
    return page.get_by_label("Answer")


def event_requests(page: Page) -> list[str]:
    """The URLs of the page's event streams from now on."""
    urls: list[str] = []

    def note(request: Request) -> None:
        if "/events" in request.url:
            urls.append(request.url)

    page.on("request", note)
    return urls


def ready_states(page: Page) -> list[int]:
    states: list[int] = page.evaluate("sources.map((source) => source.readyState)")
    return states


def test_a_run_is_started_and_shown_while_it_goes_on(page: Page, live: Stack) -> None:
    page.goto(live.url)
    page.get_by_label("Message").fill("Can I return order 48291?")
    page.get_by_role("button", name="Start").click()
    expect(page).to_have_url(re.compile(r"#run_\w+$"))
    run_id = page.url.partition("#")[2]
    plan = page.get_by_role("list", name="Plan")
    expect(plan).to_contain_text("Draft the reply")
    expect(page.get_by_role("progressbar", name="Looking up order #48291")).to_be_visible()
    expect(plan).to_contain_text("Reading the shipments")
    expect(status(page)).to_have_text("running")
    expect(answer(page)).to_contain_text("Thank you for your message")
    expect(status(page)).to_have_text("running")
    expect(status(page)).to_have_text("completed")
    run = live.read(run_id)
    assert run["input"]["message"] == "Can I return order 48291?"
    expect(answer(page)).to_have_text(run["state"]["answer"]["text"])
    evidence = page.get_by_role("list", name="Sources and checks")
    expect(evidence).to_contain_text("Inventory of Meridian standing desk")
    expect(evidence).to_contain_text("mentions_the_order")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()


def test_stop_cancels_the_run(page: Page, live: Stack) -> None:
    run_id = start(live, 1)
    open_run(page, live, run_id)
    expect(status(page)).to_have_text("running")
    page.get_by_role("button", name="Stop").click()
    expect(status(page)).to_have_text("cancelled")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    assert live.read(run_id)["status"] == "cancelled"


def test_a_reload_keeps_the_run(page: Page, live: Stack) -> None:
    run_id = start(live, 0.3)
    open_run(page, live, run_id)
    expect(page.get_by_role("list", name="Plan")).to_contain_text("Counting")
    page.reload()
    expect(status(page)).to_have_text("running")
    expect(status(page)).to_have_text("completed")
    assert page.url.endswith(f"#{run_id}")
    expect(answer(page)).to_have_text(live.read(run_id)["state"]["answer"]["text"])


def test_after_the_end_the_event_source_is_closed_and_nothing_is_asked_any_more(page: Page, live: Stack) -> None:
    urls = event_requests(page)
    open_run(page, live, start(live, 0.05))
    expect(status(page)).to_have_text("completed")
    page.wait_for_timeout(LONGER_THAN_A_RETRY_MS)
    assert ready_states(page) == [CLOSED]
    assert len(urls) == 1


def test_a_finished_run_is_shown_whole(page: Page, live: Stack) -> None:
    run_id = start(live, 0)
    text = live.ended(run_id)["state"]["answer"]["text"]
    urls = event_requests(page)
    open_run(page, live, run_id)
    expect(answer(page)).to_have_text(text)
    expect(status(page)).to_have_text("completed")
    page.wait_for_timeout(LONGER_THAN_A_RETRY_MS)
    assert len(urls) == 1


def test_a_run_that_is_not_there_is_said_once_and_not_asked_for_again(page: Page, live: Stack) -> None:
    urls = event_requests(page)
    open_run(page, live, "run_0")
    expect(page.get_by_role("alert")).to_have_text("There is no run 'run_0'.")
    page.wait_for_timeout(LONGER_THAN_A_RETRY_MS)
    assert len(urls) == 1


def test_a_failed_run_says_why(page: Page, live: Stack) -> None:
    run_id = live.start("emit", {"count": 100, "interval_ms": 500}, timeout_s=1)
    open_run(page, live, run_id)
    expect(status(page)).to_have_text("failed")
    expect(page.get_by_role("alert")).to_contain_text("(timeout)")


def test_what_an_agent_writes_is_text(page: Page, live: Stack) -> None:
    markup = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"
    open_run(page, live, live.start("emit", {"count": 1, "text": markup}))
    expect(answer(page)).to_have_text(markup)
    assert page.locator("img, b").count() == 0
    assert page.title() == "Runtail"


def test_the_page_may_load_and_ask_nothing_but_its_own_server(live: Stack) -> None:
    policy = live.http.get("/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


# Approvals and inputs.


@pytest.fixture(scope="module")
def unattended(module_stack: StackMaker) -> Stack:
    """A web process whose runs nobody executes."""
    unattended = module_stack()
    unattended.start_web()
    return unattended


def asked(page: Page) -> Locator:
    return page.get_by_role("list", name="Approvals and inputs")


@pytest.mark.parametrize(("button", "decision"), [("Approve", "approved"), ("Deny", "denied")])
def test_an_open_approval_is_decided_on_the_page(page: Page, unattended: Stack, button: str, decision: str) -> None:
    run = waiting(unattended.services, requires="operator", ids=("apr_1", "apr_2"))
    open_run(page, unattended, run.id)
    expect(asked(page)).to_contain_text("Refund by apr_2?")
    chosen = page.get_by_role("button", name=f"{button}: Refund by apr_2?")
    chosen.click()
    expect(chosen).to_be_disabled()
    expect(page.get_by_role("button", name="Approve: Refund by apr_1?")).to_be_enabled()

    def decided() -> bool:  # the button is disabled before the answer is there
        approvals = unattended.http.get("/approvals", params={"run": run.id}).json()["approvals"]
        return {a["approval_id"]: a["status"] for a in approvals} == {"apr_1": "open", "apr_2": decision}

    eventually(decided, what="the decision")


def test_a_decision_that_comes_too_late_is_told_the_outcome_on_the_page(page: Page, unattended: Stack) -> None:
    run = waiting(unattended.services)
    open_run(page, unattended, run.id)
    expect(page.get_by_role("button", name="Approve")).to_be_enabled()
    path = f"/runs/{run.id}/approvals/apr_1"
    unattended.http.post(path, json={"decision": "denied", "comment": "<b>No.</b>"})
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("alert")).to_have_text(f"apr_1 of {run.id} is denied by dev. <b>No.</b>")


def test_a_run_that_has_ended_asks_nothing_and_takes_nothing(page: Page, unattended: Stack) -> None:
    run = waiting(unattended.services)
    open_run(page, unattended, run.id)
    expect(page.get_by_role("button", name="Approve")).to_be_visible()
    expect(page.get_by_role("textbox", name="Input")).to_be_visible()
    ended(unattended.services, run)
    expect(status(page)).to_have_text("cancelled")
    expect(page.get_by_role("button", name="Approve")).to_have_count(0)
    expect(page.get_by_role("textbox", name="Input")).to_be_hidden()


def test_an_input_is_sent_from_the_page(page: Page, unattended: Stack) -> None:
    run = waiting(unattended.services)
    open_run(page, unattended, run.id)
    page.get_by_role("textbox", name="Input").fill("The grey one.")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("textbox", name="Input")).to_have_value("")
    assert [sent.text for sent in unattended.services.waits.inputs(run.id, 0, 9)] == ["The grey one."]


def test_a_refund_is_approved_on_the_page_and_the_run_goes_on(page: Page, live: Stack) -> None:
    page.goto(live.url)
    page.get_by_label("Message").fill("I want a refund for order 48291")
    page.get_by_role("button", name="Start").click()
    page.get_by_role("button", name="Approve").click(timeout=30_000)
    expect(asked(page)).to_contain_text("approved by dev")
    expect(status(page)).to_have_text("completed")
    run = live.read(page.url.partition("#")[2])
    assert [approval["status"] for approval in run["state"]["approvals"]] == ["approved"]


@pytest.fixture
def server(stack: StackMaker) -> Iterator[Stack]:
    """A worker and Redis that stay while the web process comes and goes."""
    server = stack()
    server.start_worker()
    return server


def test_a_restarted_server_is_survived(page: Page, server: Stack) -> None:
    web = server.start_web()
    run_id = start(server, 0.5)
    open_run(page, server, run_id)
    expect(page.get_by_role("list", name="Plan")).to_contain_text("Counting")
    web.kill()
    expect(page.get_by_role("alert")).to_contain_text("Connection lost")
    server.start_web()
    expect(status(page)).to_have_text("completed")
    expect(answer(page)).to_have_text(server.read(run_id)["state"]["answer"]["text"])
    expect(page.get_by_role("alert")).to_have_text("")


def test_a_closed_event_source_is_made_again_from_its_cursor(page: Page, server: Stack) -> None:
    web = server.start_web()
    run_id = server.start("emit", {"count": 40, "interval_ms": 150, "text": "tick "})
    open_run(page, server, run_id)
    expect(answer(page)).to_contain_text("tick tick tick")
    refusals = 2

    def refuse(route: Route) -> None:
        nonlocal refusals
        refusals -= 1
        if refusals < 0:
            route.continue_()
        else:
            route.fulfill(status=503, body="")  # a router in front of a server that is away

    page.route("**/events?*", refuse)
    urls = event_requests(page)
    web.kill()
    eventually(lambda: page.evaluate("sources[0].readyState") == CLOSED)
    server.start_web()
    expect(status(page)).to_have_text("completed")
    expect(answer(page)).to_have_text("tick " * 40)
    cursors = [int(parse_qs(urlsplit(url).query)["since_seq"][0]) for url in urls]
    assert cursors[0] == 0, "EventSource itself, with its Last-Event-ID"
    assert len(cursors) > 2
    assert min(cursors[1:]) > 3, "the page, with its own cursor"
    assert ready_states(page)[-1] == CLOSED


FOLD = """async (lines) => {
  const { initial, reduce } = await import("/reducer.js");
  const events = lines.map(JSON.parse);
  return JSON.stringify(events.reduce(reduce, initial(events[0].run_id)));
}"""


@pytest.mark.parametrize("log", GOLDEN, ids=lambda path: path.stem)
def test_the_reducer_of_the_page_folds_as_the_one_in_python_does(page: Page, live: Stack, log: Path) -> None:
    page.goto(live.url)
    lines = log.read_text("utf-8").splitlines()
    folded = json.loads(page.evaluate(FOLD, lines))
    expected = json.loads(log.with_suffix(".state.json").read_text("utf-8"))
    assert folded == expected
    assert list(folded) == list(expected)
