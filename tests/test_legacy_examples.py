"""The blocking apps of examples/, before and after: under sync workers, Django's own server and a plain `rq worker`."""

import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.conftest import StackMaker
from tests.harness import ROOT, Stack
from tests.legacy_apps import AFTER, BEFORE, STEPS, TEXT, Legacy, legacy_app

DIFF = AFTER.parent / "streaming.diff"
REPORT = {"customer": "ann", "total": 750, "text": TEXT}
LEASE_SECONDS = 3
JANITOR_SECONDS = 4
"""More than it takes to look at every lease twice."""
STREAMS = 10


@pytest.fixture(scope="module")
def runtail(module_stack: StackMaker) -> Stack:
    """A server; its worker is there to end what has lost its writer."""
    runtail = module_stack(EXTERNAL_LEASE_SECONDS="60")
    runtail.start_web()
    return runtail


@pytest.fixture(scope="module", params=["flask", "django"])
def legacy(runtail: Stack, environment: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Legacy]:
    """The app with the new view, and a worker."""
    with legacy_app(runtail, environment) as legacy:
        getattr(legacy, request.param)()
        legacy.worker()
        yield legacy


@pytest.fixture
def mortal(stack: StackMaker, environment: dict[str, str]) -> Iterator[Legacy]:
    """A server that takes a writer to be lost after a short time."""
    lease = str(LEASE_SECONDS)
    runtail = stack(EXTERNAL_LEASE_SECONDS=lease, EXTERNAL_LEASE_MAX_SECONDS=lease)
    runtail.start_web()
    runtail.start_worker()
    with legacy_app(runtail, environment) as legacy:
        legacy.flask()
        yield legacy


# The old way.


def test_the_diff_is_what_lies_between_before_and_after() -> None:
    command = ["diff", "-urN", "-x", "__pycache__", BEFORE.name, AFTER.name]
    output = subprocess.run(command, cwd=BEFORE.parent, capture_output=True, text=True).stdout
    lines = [re.sub(r"^(---|\+\+\+) (\S+)\t.*", r"\1 \2", line) for line in output.splitlines()]
    assert [line for line in lines if not line.startswith("diff ")] == DIFF.read_text().splitlines()


def test_the_readme_shows_lines_of_that_diff() -> None:
    shown = (ROOT / "README.md").read_text().partition("```diff\n")[2].partition("```")[0].splitlines()
    assert shown
    assert set(shown) <= set(DIFF.read_text().splitlines())


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_the_blocking_view_answers_to_the_byte_what_it_did(
    runtail: Stack, environment: dict[str, str], accept: str
) -> None:
    answers = []
    for folder in (BEFORE, AFTER):
        with legacy_app(runtail, environment) as legacy:
            legacy.flask(folder)
            answers.append(legacy.report(accept))
    heads = [{name: value for name, value in answer.headers.items() if name != "date"} for answer in answers]
    assert answers[0].status_code == answers[1].status_code == 200
    assert answers[0].content == answers[1].content
    assert heads[0] == heads[1]
    assert "That makes 750 euros." in answers[0].text


def test_the_blocking_view_answers_while_ten_streams_are_open(legacy: Legacy) -> None:
    assert legacy.report().json() == REPORT
    alone = legacy.report().elapsed.total_seconds()
    reports = [legacy.live() for _ in range(STREAMS)]
    with ExitStack() as opened, ThreadPoolExecutor(2) as pool:
        streams = [report.events() for report in reports]
        for stream in streams:
            opened.callback(stream.close)
            assert next(stream)["type"] == "run.created"
        answers = [pool.submit(legacy.report) for _ in range(2)]
        for answer in answers:
            assert answer.result().json() == REPORT
            assert answer.result().elapsed.total_seconds() < alone + 1.5
        assert legacy.queue.count > 0, "there were streams open all the while"
        for report in reports:
            report.stop()
        for stream in streams:
            assert [event["type"] for event in stream][-1] in ("run.completed", "run.cancelled")


# The new one.


def test_a_report_is_seen_while_it_is_made_and_comes_out_the_same(legacy: Legacy) -> None:
    report = legacy.live()
    events = report.events()
    first = next(event for event in events if event["type"] == "message.delta")
    assert first["payload"]["text"] == TEXT.splitlines(keepends=True)[0]
    assert legacy.runtail.services.store.get(report.run_id).status == "running"
    assert [event["type"] for event in events][-1] == "run.completed"
    run = report.ended()
    assert run["output"] == REPORT == legacy.report().json()
    assert run["state"]["answer"] == {"text": TEXT, "status": "final"}
    assert [step["title"] for step in run["state"]["steps"]] == STEPS


def test_stop_stops_the_job(legacy: Legacy) -> None:
    report = legacy.live()
    report.reaches("message.delta")
    report.stop()
    run = report.ended()
    assert run["status"] == "cancelled"
    assert run["state"]["answer"]["text"] != TEXT
    legacy.idle()
    assert legacy.queue.failed_job_registry.count == 0


def test_a_job_that_is_stopped_before_it_begins_does_nothing(mortal: Legacy) -> None:
    report = mortal.live()
    report.stop()
    mortal.worker()
    run = report.ended()
    assert run["status"] == "cancelled"
    assert run["state"]["messages"] == []
    mortal.idle()


def test_stop_of_a_report_that_is_not_there_is_answered_in_fit_words(legacy: Legacy) -> None:
    of_somebody_else = legacy.runtail.http.post("/runs", json={"agent": "external"}, headers={"Runtail-User": "eve"})
    for run_id in ("run_none", of_somebody_else.json()["run_id"]):
        answer = legacy.http.post(f"/live/{run_id}/stop")
        assert (answer.status_code, answer.text) == (404, "There is no such report.")


def test_stop_of_a_report_that_is_done_changes_nothing(legacy: Legacy) -> None:
    report = legacy.live()
    assert report.ended()["status"] == "completed"
    report.stop()
    assert report.ended()["status"] == "completed"


@pytest.mark.parametrize("kind", ["flask", "django"])
def test_where_nothing_answers_for_runtail_the_app_says_so(
    stack: StackMaker, environment: dict[str, str], kind: str
) -> None:
    nothing = stack()
    with legacy_app(nothing, environment) as legacy:
        getattr(legacy, kind)()
        for path in ("/live", "/live/run_1/stop"):
            answer = legacy.http.post(path, data={"customer": "ann"})
            assert (answer.status_code, answer.text) == (503, "Please try again later.")
        assert legacy.report().json() == REPORT


# When a job dies.


def test_the_run_of_a_worker_that_is_gone_for_good_fails_within_the_lease(mortal: Legacy) -> None:
    mortal.worker()
    report = mortal.live()
    report.reaches("message.delta")
    for process in (mortal.rq, mortal.horse()):
        process.kill()
    killed_at = time.monotonic()
    run = report.ended()
    assert time.monotonic() - killed_at < LEASE_SECONDS + JANITOR_SECONDS
    assert run["status"] == "failed"
    assert run["error"]["code"] == "writer_lost"


def test_a_job_that_is_killed_is_tried_again_and_shows_nothing_twice(mortal: Legacy) -> None:
    mortal.worker()
    report = mortal.live()
    report.reaches("message.delta")
    mortal.horse().kill()
    events = list(report.events())
    run = report.ended()
    assert run["status"] == "completed"
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert run["output"] == REPORT
    assert run["state"]["answer"]["text"] == TEXT
    assert [message["status"] for message in run["state"]["messages"]] == ["abandoned", "completed"]
    again = max(event["seq"] for event in events if event["type"] == "run.step")
    assert [event["payload"]["title"] for event in events[again:] if event["type"] == "step.started"] == STEPS
    assert [(step["title"], step["status"]) for step in run["state"]["steps"]] == [(s, "completed") for s in STEPS]
