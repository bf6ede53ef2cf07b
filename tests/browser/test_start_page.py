"""What the page offers beside a run: agents to choose from, the newest runs, a key where one is needed."""

import re

from playwright.sync_api import Page, expect

from app.storage.run_store import Principal
from tests.conftest import StackMaker
from tests.harness import Stack


def choose(page: Page, agent: str, message: str) -> None:
    page.get_by_label("Agent", exact=True).select_option(agent)
    page.get_by_label("Message").fill(message)
    page.get_by_role("button", name="Start").click()


def test_any_agent_can_be_started_with_the_text_that_it_requires(page: Page, live: Stack) -> None:
    page.goto(live.url)
    choose(page, "greet", "ann")
    expect(page.get_by_role("status")).to_have_text("completed")
    assert live.read(page.url.partition("#")[2])["input"] == {"name": "ann"}


def test_an_agent_with_another_input_takes_json_and_says_so(page: Page, live: Stack) -> None:
    page.goto(live.url)
    choose(page, "emit", "three")
    expect(page.get_by_role("alert")).to_contain_text("emit takes JSON with count")
    page.get_by_label("Message").fill('{"count": 3, "type": "custom.tick"}')
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("status")).to_have_text("completed")
    assert live.read(page.url.partition("#")[2])["input"]["count"] == 3


def test_the_newest_runs_are_listed_and_one_click_away(page: Page, live: Stack) -> None:
    run_id = live.start("greet", {"name": "bob"})
    live.ended(run_id)
    page.goto(live.url)
    listed = page.get_by_role("list", name="Runs")
    expect(listed).to_contain_text("greet, completed")
    listed.get_by_role("link", name=run_id).click()
    expect(page.get_by_label("Answer")).to_contain_text("Good to see you, Bob")


def test_an_unknown_run_is_a_sentence_and_has_no_buttons(page: Page, live: Stack) -> None:
    page.goto(f"{live.url}/#run_01AAAAAAAAAAAAAAAAAAAAAAAA")
    expect(page.get_by_role("alert")).to_contain_text("There is no run")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(page.get_by_role("button", name="Send")).to_be_hidden()


def test_the_page_leads_to_the_description_of_the_api(page: Page, live: Stack) -> None:
    page.goto(live.url)
    page.get_by_role("link", name="API").click()
    expect(page).to_have_url(re.compile("/docs"))


def test_where_a_key_is_needed_the_page_asks_for_it_and_follows_a_run_with_it(page: Page, stack: StackMaker) -> None:
    server = stack(RUNTAIL_DEV="0")
    key = server.services.registry.create_key(Principal("acme", "ann"))
    server.start_web()
    server.start_worker()
    page.goto(server.url)
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use").click()
    expect(page.get_by_label("API key")).to_be_hidden()
    choose(page, "support", "Where is order 48291?")
    expect(page.get_by_role("list", name="Plan")).to_contain_text("Draft the reply")
    server.http.headers["Authorization"] = f"Bearer {key}"
    web = server.processes[0]
    web.kill()  # the window is opened again, by its cursor
    server.start_web()
    expect(page.get_by_role("status")).to_have_text("completed", timeout=30_000)
    text = server.read(page.url.partition("#")[2])["state"]["answer"]["text"]
    expect(page.get_by_label("Answer")).to_have_text(text)


def test_a_wrong_key_is_said_to_be_wrong(page: Page, stack: StackMaker) -> None:
    server = stack(RUNTAIL_DEV="0")
    server.start_web()
    page.goto(server.url)
    page.get_by_label("API key").fill("rt_0_wrong")
    page.get_by_role("button", name="Use").click()
    expect(page.get_by_label("API key")).to_be_visible()
