"""Inputs: what is sent to a run in its middle is kept, once and in order, and wakes a run that waits for it."""

from contextlib import closing
from dataclasses import replace
from typing import Any

import httpx
import pytest

from app.storage.run_store import Checkpoint, InputRecord, Principal, RunRecord
from app.verbs.commands import Commands
from app.wiring import Services
from tests.conftest import StackMaker, execute
from tests.harness import DEV, Stack, free_port, pending_run, problem
from tests.waiting import ABROAD, ANN, BOB, ROOT, asked, at_once, ended, got, waiting


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """A web process whose runs nobody executes."""
    web = module_stack()
    web.start_web()
    return web


def send(web: Stack, run: RunRecord, text: str, **headers: str) -> httpx.Response:
    return web.http.post(f"/runs/{run.id}/input", json={"text": text}, headers=headers)


def texts(services: Services, run: RunRecord) -> list[str]:
    return [sent.text for sent in services.waits.inputs(run.id, 0, 2_000)]


# An input.


def test_an_input_wakes_its_run_which_is_pending_and_enqueued_when_it_is_answered(web: Stack) -> None:
    run = waiting(web.services)
    answer = send(web, run, "The grey one, please.")
    assert (answer.status_code, answer.json()) == (202, {"input_id": "inp_1", "run_id": run.id})
    woken = got(web.services, run.id)
    assert (woken.status, woken.requeue_reason) == ("pending", "resumed")
    assert run.id in web.services.queue.waiting()


def test_inputs_are_kept_in_order_whatever_the_run_is_doing(web: Stack) -> None:
    run = pending_run(web.services)
    assert send(web, run, "one").json()["input_id"] == "inp_1"
    claimed = web.services.store.claim(run.id, "w", start=True)
    assert claimed is not None
    assert send(web, run, "two").json()["input_id"] == "inp_2"
    web.services.store.suspend(Checkpoint(run.id, claimed.epoch, [], "{}", 1), [], 2, None)
    assert got(web.services, run.id).status == "waiting", "it has seen these two"
    assert send(web, run, "three").json()["input_id"] == "inp_3"
    assert got(web.services, run.id).status == "pending"
    assert web.services.waits.inputs(run.id, 0, 2) == [InputRecord(run.id, 1, "one"), InputRecord(run.id, 2, "two")]
    assert web.services.waits.inputs(run.id, 2, 2) == [InputRecord(run.id, 3, "three")]
    assert web.services.waits.inputs(run.id, 3, 2) == []


def test_an_input_for_a_running_run_rings_its_owner(web: Stack) -> None:
    rings = web.services.log.rings("w")
    next(rings)
    run = asked(web.services)
    assert send(web, run, "Hurry up.").status_code == 202
    next(rings)
    (mine,) = (owned for owned in web.services.store.owned_by("w") if owned.id == run.id)
    assert mine.inputs == 1
    assert not web.services.store.suspend(Checkpoint(run.id, run.epoch, []), [], 0, None), "it has not seen it"


def test_inputs_that_are_sent_at_once_get_a_number_each(apart: Services) -> None:
    run = waiting(apart)
    sent: list[Any] = at_once(*(lambda n=n: apart.waits.add_input(DEV, run.id, f"{n}", None) for n in range(8)))
    assert sorted(s.input.n for s in sent) == list(range(1, 9))
    assert [s.run.woken for s in sent].count(True) == 1
    assert sorted(texts(apart, run)) == [f"{n}" for n in range(8)]


def test_an_input_is_taken_although_redis_is_away(apart: Services) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}"
    run = waiting(apart)
    with closing(Services.for_web(replace(apart.config, redis_url=nowhere, events_redis_url=nowhere))) as cut_off:
        assert Commands(cut_off).send_input(DEV, run.id, "hello", None).n == 1
    assert got(apart, run.id).status == "pending"


@pytest.mark.parametrize("_", range(10))
def test_an_input_and_the_suspension_that_race_leave_no_run_waiting_for_it(apart: Services, _: int) -> None:
    run = asked(apart)
    sent: Any
    suspended, sent = at_once(
        lambda: apart.store.suspend(Checkpoint(run.id, run.epoch, [], "{}", 2), [], 0, None),
        lambda: apart.waits.add_input(DEV, run.id, "hello", None),
    )
    assert sent.input.n == 1
    assert sent.run.woken == suspended
    assert got(apart, run.id).status == ("pending" if suspended else "running")


# Sent twice.


def test_an_input_with_the_same_key_is_the_same_input(web: Stack) -> None:
    run, other = waiting(web.services), waiting(web.services)
    first = send(web, run, "The grey one.", **{"Idempotency-Key": "k1"})
    again = send(web, run, "The grey one.", **{"Idempotency-Key": "k1"})
    assert (again.status_code, again.json()) == (202, first.json())
    problem(send(web, run, "The blue one.", **{"Idempotency-Key": "k1"}), 409, "idempotency_conflict")
    assert texts(web.services, run) == ["The grey one."]
    assert send(web, run, "The grey one.", **{"Idempotency-Key": "k2"}).json()["input_id"] == "inp_2"
    assert send(web, run, "The grey one.").json()["input_id"] == "inp_3"
    assert send(web, other, "The blue one.", **{"Idempotency-Key": "k1"}).json()["input_id"] == "inp_1"
    ended(web.services, run)
    assert send(web, run, "The grey one.", **{"Idempotency-Key": "k1"}).json() == first.json()


def test_an_input_that_is_repeated_at_once_is_stored_once(apart: Services) -> None:
    run = waiting(apart)
    sent: list[Any] = at_once(*[lambda: apart.waits.add_input(DEV, run.id, "hello", "k")] * 8)
    assert {s.input.n for s in sent} == {1}
    assert texts(apart, run) == ["hello"]


# Refused.


def test_a_run_that_has_ended_or_is_being_cancelled_takes_no_input(web: Stack) -> None:
    run = waiting(web.services)
    web.services.store.request_cancel(run.id)
    problem(send(web, run, "Wait!"), 409, "run_cancelling")
    assert got(web.services, run.id).status == "pending", "to be ended"
    ended(web.services, run)
    assert problem(send(web, run, "Wait!"), 409, "run_ended")["detail"] == f"{run.id} is cancelled."
    assert texts(web.services, run) == []


def test_a_run_takes_1_000_inputs_and_no_more(web: Stack) -> None:
    run = waiting(web.services)
    execute(
        web.env["DATABASE_URL"],
        f"INSERT INTO run_inputs (run_id, n, text) SELECT '{run.id}', n, 'x' FROM generate_series(1, 999) AS n",
    )
    assert send(web, run, "last", **{"Idempotency-Key": "k"}).json()["input_id"] == "inp_1000"
    problem(send(web, run, "one more"), 409, "too_many_inputs")
    assert send(web, run, "last", **{"Idempotency-Key": "k"}).status_code == 202
    assert len(texts(web.services, run)) == 1_000


def test_an_input_is_taken_from_the_owner_of_the_run_alone(web: Stack) -> None:
    run = waiting(web.services, ANN)
    for other in (BOB, ROOT, ABROAD):
        key = web.services.registry.create_key(other)
        problem(send(web, run, "hello", Authorization=f"Bearer {key}"), 404, "run_not_found")
    problem(send(web, run, "hello"), 404, "run_not_found")
    assert texts(web.services, run) == []
    key = web.services.registry.create_key(Principal("acme", "ann"))
    assert send(web, run, "hello", Authorization=f"Bearer {key}").status_code == 202


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        "hello",
        {"text": ""},
        {"text": None},
        {"text": 3},
        {"text": ["hello"]},
        {"text": "x" * 20_001},
        {"text": "hello", "role": "user"},
    ],
)
def test_an_input_that_does_not_fit_is_refused_and_changes_nothing(web: Stack, body: Any) -> None:
    run = waiting(web.services)
    problem(web.http.post(f"/runs/{run.id}/input", json=body), 422, "invalid_request")
    assert got(web.services, run.id).status == "waiting"
    assert texts(web.services, run) == []


@pytest.mark.parametrize("key", ["", "with space", "é", "a" * 256])
def test_a_bad_idempotency_key_of_an_input_is_refused(web: Stack, key: str) -> None:
    run = waiting(web.services)
    answer = web.http.post(f"/runs/{run.id}/input", json={"text": "x"}, headers={"Idempotency-Key": key.encode()})
    problem(answer, 422, "invalid_request")


def test_text_up_to_the_limit_is_taken_and_cleaned(web: Stack) -> None:
    run = waiting(web.services)
    assert send(web, run, "\U0001f600" * 20_000).status_code == 202
    content = rb'{"text": "a\u0000b\ud800c"}'
    headers = {"Content-Type": "application/json"}
    assert web.http.post(f"/runs/{run.id}/input", content=content, headers=headers).status_code == 202
    assert texts(web.services, run) == ["\U0001f600" * 20_000, "a\ufffdb\ufffdc"]
