"""Leases of external writers, runs that are cancelled before they have one, and a server without a janitor."""

import re
import time
from typing import Any

import pytest

from tests.conftest import StackMaker
from tests.external_writer import ExternalWriter, words
from tests.harness import Stack, eventually, problem
from tests.stored import ended, payloads, row

LEASE_SECONDS, LONGEST_SECONDS = 2, 20


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    """With short leases, and a worker whose janitor watches them."""
    settings = {"EXTERNAL_LEASE_SECONDS": str(LEASE_SECONDS), "EXTERNAL_LEASE_MAX_SECONDS": str(LONGEST_SECONDS)}
    server = module_stack(**settings)
    server.start_web()
    server.start_worker()
    return server


@pytest.fixture(scope="module")
def alone(module_stack: StackMaker) -> Stack:
    """A web process without any worker."""
    alone = module_stack()
    alone.start_web()
    return alone


def start(server: Stack, key: str | None = None, **headers: str) -> dict[str, Any]:
    """The answer to POST /runs."""
    named = {"Idempotency-Key": key} if key else {}
    answer = server.http.post("/runs", json={"agent": "external"}, headers={**named, **headers})
    assert answer.status_code == 202, answer.text
    started: dict[str, Any] = answer.json()
    return started


@pytest.mark.parametrize(("asked", "granted"), [("1", 1), ("19", 19), ("20", 20), ("21", 20), ("2147483647", 20)])
def test_a_writer_gets_the_lease_that_it_asks_for_up_to_the_longest(server: Stack, asked: str, granted: int) -> None:
    started = start(server, **{"Runtail-Lease": asked})
    assert started["lease_seconds"] == granted
    ExternalWriter(server.http, started).complete()


@pytest.mark.parametrize("asked", ["0", "-3", "soon", "1.5", "", "99999999999"])
def test_a_lease_that_is_no_number_of_seconds_is_refused(server: Stack, asked: str) -> None:
    answer = server.http.post("/runs", json={"agent": "external"}, headers={"Runtail-Lease": asked})
    problem(answer, 422, "invalid_request")


def test_a_silent_writer_keeps_its_run_for_its_own_lease(server: Stack) -> None:
    patient = ExternalWriter(server.http, start(server, **{"Runtail-Lease": "12"}))
    hasty = ExternalWriter(server.http, start(server, **{"Runtail-Lease": "1"}))
    ordinary = ExternalWriter(server.http, start(server))
    assert ended(server, hasty.run_id, "failed").error["message"] == "The writer was silent for 1 s."
    assert ended(server, ordinary.run_id, "failed").error["message"] == "The writer was silent for 2 s."
    assert row(server, patient.run_id).status == "running"
    assert patient.append(*words("Here.")).status_code == 200
    patient.complete()
    assert ended(server, patient.run_id).output["text"] == "Here."


def test_each_writer_of_a_run_has_a_lease_of_its_own(server: Stack) -> None:
    first = start(server, "leases", **{"Runtail-Writer": "later", "Runtail-Lease": "1"})
    time.sleep(LEASE_SECONDS + 2)  # nobody has a lease yet
    ExternalWriter(server.http, start(server, "leases", **{"Runtail-Lease": "15"}))
    time.sleep(LEASE_SECONDS + 2)
    assert row(server, first["run_id"]).status == "running"
    start(server, "leases")
    assert ended(server, first["run_id"], "failed").error["message"] == "The writer was silent for 2 s."


def test_a_cancelled_run_waits_no_longer_than_usual_for_a_silent_writer(server: Stack) -> None:
    writer = ExternalWriter(server.http, start(server, **{"Runtail-Lease": "20"}))
    begun = time.monotonic()
    server.http.post(f"/runs/{writer.run_id}/cancel")
    ended(server, writer.run_id, "cancelled")
    assert time.monotonic() - begun < 15


# Before a writer has come, with no worker at all.


def test_a_run_cancelled_before_its_writer_comes_ends_at_once(alone: Stack) -> None:
    run = start(alone, "early", **{"Runtail-Writer": "later"})
    answer = alone.http.post(f"/runs/{run['run_id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    again = start(alone, "early")
    assert (again["status"], again["writer_token"]) == ("cancelled", None)
    assert [event["reason"] for event in payloads(alone, run["run_id"], "run.cancelled")] == ["requested"]


@pytest.mark.parametrize("name", ["client_run_id", "idempotency_key"])
def test_so_does_one_cancelled_by_its_name_before_it_was_opened(alone: Stack, name: str) -> None:
    key = f"early-{name}"
    assert alone.http.post("/runs/cancel", json={name: key}).status_code == 202
    body = {"agent": "external", **({name: key} if name == "client_run_id" else {})}
    headers = {"Runtail-Writer": "later", **({"Idempotency-Key": key} if name == "idempotency_key" else {})}
    started = alone.http.post("/runs", json=body, headers=headers).json()
    assert started["status"] == "cancelled"
    assert row(alone, started["run_id"]).status == "cancelled"


def test_whoever_asks_for_a_run_whose_cancel_is_committed_ends_it(alone: Stack) -> None:
    for key, headers in (("seen-1", {}), ("seen-2", {"Runtail-Writer": "later"})):
        run = start(alone, key, **{"Runtail-Writer": "later"})
        alone.services.store.request_cancel(run["run_id"])  # the process that was asked died here
        assert start(alone, key, **headers)["status"] == "cancelled"


def test_a_writer_at_work_is_told_of_the_cancel_and_not_robbed(alone: Stack) -> None:
    writer = ExternalWriter(alone.http, start(alone))
    assert alone.http.post(f"/runs/{writer.run_id}/cancel").status_code == 202
    assert writer.beat().json()["cancel_requested"] is True
    assert writer.finish({"status": "cancelled"}).status_code == 200


def test_a_run_that_has_ended_can_be_shown_again(alone: Stack) -> None:
    writer = ExternalWriter(alone.http, start(alone, "shown"))
    writer.append(*words("Done."))
    writer.complete()
    shown = start(alone, "shown", **{"Runtail-Writer": "later"})
    assert (shown["status"], shown["writer_token"], shown["epoch"]) == ("completed", None, None)
    page = alone.http.get(
        f"/runs/{writer.run_id}/events",
        params={"watch_token": shown["watch_token"]},
        headers={"Accept": "application/json"},
    )
    assert page.json()["terminal"]
    assert start(alone, "shown")["watch_token"] is None, "a writer that comes too late"


def test_a_web_without_a_worker_says_so(module_stack: StackMaker) -> None:
    own = module_stack()
    web = own.start_web()
    ready = own.http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["status"] == "ready"
    assert re.match("No worker is running", ready.json()["warnings"][0])
    start(own)
    start(own)
    assert web.log.read_text().count("No worker is running") == 1
    own.start_worker()
    eventually(lambda: own.http.get("/readyz").json()["warnings"] == [], 15, "a janitor")
