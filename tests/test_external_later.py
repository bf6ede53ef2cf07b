"""External runs whose writer comes later: `Runtail-Writer: later`."""

from typing import Any

import httpx

from tests.external_writer import ExternalWriter, words
from tests.harness import Stack, problem
from tests.stored import ended, payloads

BODY = {"agent": "external", "input": {"n": 1}}


def start(live: Stack, key: str, **headers: str) -> httpx.Response:
    """POST /runs."""
    return live.http.post("/runs", json=BODY, headers={"Idempotency-Key": key, **headers})


def later(live: Stack, key: str) -> dict[str, Any]:
    """A run that nobody is to write yet."""
    answer = start(live, key, **{"Runtail-Writer": "later"})
    assert answer.status_code == 202, answer.text
    run: dict[str, Any] = answer.json()
    return run


def test_a_run_whose_writer_comes_later_has_none_yet(live: Stack) -> None:
    run = later(live, "later-1")
    assert (run["writer_token"], run["epoch"]) == (None, None)
    path = f"/runs/{run['run_id']}"
    json = {"Accept": "application/json"}
    page = live.http.get(f"{path}/events", params={"watch_token": run["watch_token"]}, headers=json).json()
    assert [event["type"] for event in page["events"]] == ["run.created", "run.started"]
    nobody = {"Authorization": f"Bearer {run['watch_token']}", "Producer-Epoch": "1"}
    problem(live.http.post(f"{path}/heartbeat", headers=nobody), 404, "run_not_found")
    live.http.post(f"{path}/cancel")
    ended(live, run["run_id"], "cancelled")


def test_the_first_writer_that_comes_is_no_retry_and_the_second_is(live: Stack) -> None:
    run = later(live, "later-2")
    first = ExternalWriter(live.http, start(live, "later-2").json())
    assert (first.run_id, first.epoch) == (run["run_id"], 1)
    first.append(*words("It is "))
    second = ExternalWriter(live.http, start(live, "later-2").json())
    assert second.epoch == 2
    problem(first.append(*words("late")), 403, "stale_epoch")
    second.complete(output="grey")
    assert [step["reason"] for step in payloads(live, run["run_id"], "run.step")] == ["retry"]
    assert ended(live, run["run_id"]).attempt == 2


def test_asking_again_for_later_leaves_the_writer_at_work(live: Stack) -> None:
    later(live, "later-3")
    writer = ExternalWriter(live.http, start(live, "later-3").json())
    again = later(live, "later-3")
    assert (again["writer_token"], again["epoch"]) == (None, None)
    assert again["watch_token"]
    assert writer.append(*words("grey")).status_code == 200
    writer.complete()
    over = later(live, "later-3")
    assert (over["status"], over["writer_token"]) == ("completed", None)
    assert over["watch_token"]


def test_a_cancel_before_the_writer_comes_ends_the_run_and_the_writer_is_told(live: Stack) -> None:
    run = later(live, "later-4")
    live.http.post(f"/runs/{run['run_id']}/cancel")
    ended(live, run["run_id"], "cancelled")
    answer = start(live, "later-4").json()
    assert (answer["status"], answer["writer_token"]) == ("cancelled", None)


def test_the_last_ten_watch_tokens_are_good(live: Stack) -> None:
    tokens = [later(live, "later-6")["watch_token"] for _ in range(12)]
    run_id = later(live, "later-6")["run_id"]  # which made the thirteenth
    json = {"Accept": "application/json"}
    answers = [
        live.http.get(f"/runs/{run_id}/events", params={"watch_token": t}, headers=json).status_code for t in tokens
    ]
    assert answers == [404] * 3 + [200] * 9
    live.http.post(f"/runs/{run_id}/cancel")


def test_nothing_but_later_is_taken(live: Stack) -> None:
    problem(start(live, "later-5", **{"Runtail-Writer": "never"}), 422, "invalid_request")
