"""Approvals: who decides, what a decision does to the run, and what happens when several come at once."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg2
import pytest

from app.storage.run_store import Checkpoint, Principal, RunRecord
from app.storage.run_store import commands as waits_module
from app.verbs.commands import Commands
from app.wiring import Services
from tests.conftest import StackMaker, execute
from tests.harness import DEV, Stack, eventually, free_port, problem
from tests.waiting import ABROAD, ANN, BOB, ROOT, asked, at_once, ended, got, waiting

FIELDS = {
    *("approval_id", "run_id", "agent", "label", "requires", "tool_call_id", "status", "by", "comment"),
    *("created_at", "expires_at", "decided_at"),
}


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """A web process whose runs nobody executes."""
    web = module_stack()
    web.start_web()
    return web


@pytest.fixture(scope="module")
def keys(web: Stack) -> dict[Principal, str]:
    return {who: web.services.registry.create_key(who) for who in (ANN, BOB, ROOT, ABROAD)}


Decide = Callable[..., httpx.Response]


@pytest.fixture
def decide(web: Stack, keys: dict[Principal, str]) -> Decide:
    def decide(
        run: RunRecord, decision: str, who: Principal = DEV, approval_id: str = "apr_1", **more: Any
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {keys[who]}"} if who != DEV else {}
        path = f"/runs/{run.id}/approvals/{approval_id}"
        return web.http.post(path, json={"decision": decision, **more}, headers=headers)

    return decide


def resolved(answer: httpx.Response) -> dict[str, Any]:
    """The outcome that a 409 carries."""
    assert answer.status_code == 409, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    document = answer.json()
    assert document["code"] == "approval_resolved"
    assert set(document["approval"]) == FIELDS
    outcome: dict[str, Any] = document["approval"]
    return outcome


# A decision.


def test_a_decision_is_recorded_and_its_run_is_pending_and_enqueued_when_it_is_answered(
    web: Stack, decide: Decide
) -> None:
    run = waiting(web.services)
    before = datetime.now(UTC)
    answer = decide(run, "approved", comment="Within our policy.")
    assert answer.status_code == 200
    woken = got(web.services, run.id)
    assert (woken.status, woken.requeue_reason, woken.owner, woken.wake_at) == ("pending", "resumed", None, None)
    assert woken.epoch == run.epoch
    assert run.id in web.services.queue.waiting()
    approval = answer.json()
    assert set(approval) == FIELDS
    assert before <= datetime.fromisoformat(approval.pop("decided_at")) <= datetime.now(UTC)
    assert run.created_at <= datetime.fromisoformat(approval.pop("created_at")) <= before
    assert approval == {
        "approval_id": "apr_1",
        "run_id": run.id,
        "agent": "emit",
        "label": "Refund by apr_1?",
        "requires": "owner",
        "tool_call_id": "call_1",
        "status": "approved",
        "by": "dev",
        "comment": "Within our policy.",
        "expires_at": None,
    }


def test_a_decision_needs_no_comment_and_what_is_said_is_cleaned(web: Stack, decide: Decide) -> None:
    assert decide(waiting(web.services), "denied").json()["comment"] is None
    assert decide(waiting(web.services), "denied", comment="no\0").json()["comment"] == "no\ufffd"


def test_the_same_decision_again_is_answered_with_the_first_one(web: Stack, decide: Decide) -> None:
    run = waiting(web.services)
    first = decide(run, "denied", comment="Too much.")
    again = decide(run, "denied", comment="Far too much.")
    assert (again.status_code, again.json()) == (200, first.json())
    ended(web.services, run)
    assert decide(run, "denied").json() == first.json()


def test_another_decision_is_refused_with_the_outcome(web: Stack, decide: Decide) -> None:
    run = waiting(web.services)
    first = decide(run, "denied", comment="Too much.")
    second = decide(run, "approved")
    assert resolved(second) == first.json()
    assert second.json()["detail"] == f"apr_1 of {run.id} is denied by dev. Too much."
    ended(web.services, run)
    assert resolved(decide(run, "approved")) == first.json()


def test_a_decision_for_a_running_run_waits_for_it_and_the_owner_is_rung(web: Stack, decide: Decide) -> None:
    rings = web.services.log.rings("w")
    next(rings)
    run = asked(web.services)
    assert decide(run, "approved").status_code == 200
    next(rings)
    running = got(web.services, run.id)
    assert (running.status, running.owner) == ("running", "w")
    assert run.id not in web.services.queue.waiting()
    last = Checkpoint(run.id, run.epoch, [])
    assert not web.services.store.suspend(last, ["apr_1"], 0, None), "what it would wait for is there"


@pytest.mark.parametrize("decision", ["approved", "denied"])
def test_one_of_several_approvals_is_enough_to_wake_the_run(web: Stack, decide: Decide, decision: str) -> None:
    run = waiting(web.services, ids=("apr_1", "apr_2"))
    assert decide(run, decision, approval_id="apr_2").status_code == 200
    assert got(web.services, run.id).status == "pending"
    (left,) = web.http.get("/approvals", params={"status": "open", "run": run.id}).json()["approvals"]
    assert left["approval_id"] == "apr_1"


def test_a_run_is_woken_although_redis_is_away(apart: Services) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}"
    run = waiting(apart)
    with closing(Services.for_web(replace(apart.config, redis_url=nowhere, events_redis_url=nowhere))) as cut_off:
        approval = Commands(cut_off).decide(DEV, run.id, "apr_1", "approved", None)
    assert approval.decision == "approved"
    assert got(apart, run.id).status == "pending"


# Who decides.


def test_the_owner_decides_for_its_own_run(web: Stack, decide: Decide) -> None:
    run = waiting(web.services, ANN)
    for other in (BOB, ROOT, ABROAD, DEV):
        problem(decide(run, "approved", other), 404, "run_not_found")
    assert got(web.services, run.id).status == "waiting"
    assert decide(run, "approved", ANN).json()["by"] == "ann"


def test_an_operator_decides_where_one_is_required_and_not_the_owner(web: Stack, decide: Decide) -> None:
    run = waiting(web.services, ANN, requires="operator")
    problem(decide(run, "approved", ANN), 403, "operator_required")
    for other in (BOB, ABROAD, DEV):
        problem(decide(run, "approved", other), 404, "run_not_found")
    assert got(web.services, run.id).status == "waiting"
    assert decide(run, "approved", ROOT).json()["by"] == "root"


def test_an_owner_who_is_an_administrator_is_an_operator(web: Stack, decide: Decide) -> None:
    assert decide(waiting(web.services, requires="operator"), "approved").json()["by"] == "dev"


def test_an_approval_that_is_not_there_is_said_to_the_owner_of_the_run_alone(web: Stack, decide: Decide) -> None:
    run = waiting(web.services, ANN)
    for name in ("apr_2", "%00", "a" * 2_000, "%f0%9f%98%80"):
        problem(decide(run, "approved", ANN, name), 404, "approval_not_found")
        for other in (BOB, ROOT):
            problem(decide(run, "approved", other, name), 404, "run_not_found")


# Expiry.


def test_a_decision_after_the_expiry_loses_even_where_nobody_has_noticed_it(web: Stack, decide: Decide) -> None:
    run = waiting(web.services, expires_in=-0.01)
    outcome = resolved(decide(run, "approved", comment="Just in time?"))
    assert (outcome["status"], outcome["by"], outcome["comment"]) == ("expired", None, None)
    assert outcome["decided_at"] is not None
    assert got(web.services, run.id).status == "pending", "it goes on with that"
    assert run.id in web.services.queue.waiting()
    assert resolved(decide(run, "approved")) == outcome
    assert resolved(decide(run, "denied")) == outcome


def test_a_decision_that_waited_for_the_row_past_the_expiry_loses(web: Stack, decide: Decide) -> None:
    run = waiting(web.services, expires_in=0.5)
    with closing(psycopg2.connect(web.env["DATABASE_URL"])) as other, ThreadPoolExecutor(1) as pool:
        other.cursor().execute("SELECT 1 FROM runs WHERE id = %s FOR UPDATE", (run.id,))
        late = pool.submit(decide, run, "approved")
        eventually(lambda: is_over(web.services, run))
        other.rollback()
        assert resolved(late.result())["status"] == "expired"


def is_over(services: Services, run: RunRecord) -> bool:
    approval = services.waits.find(DEV, run.id, "apr_1")
    assert approval is not None
    assert approval.expires_at is not None
    return approval.expires_at < datetime.now(UTC)


def test_an_expiry_wakes_the_run_and_takes_the_approval_off_the_open_ones(apart: Services) -> None:
    due, later, never = (waiting(apart, expires_in=seconds) for seconds in (-1, 3_600, None))
    (woken,) = apart.waits.expire_due(10)
    assert (woken.id, woken.status, woken.requeue_reason) == (due.id, "pending", "resumed")
    approval = apart.waits.find(DEV, due.id, "apr_1")
    assert approval is not None
    assert (approval.decision, approval.decided_by, approval.comment) == ("expired", None, None)
    assert [got(apart, run.id).status for run in (later, never)] == ["waiting", "waiting"]
    assert apart.waits.expire_due(10) == []


def test_an_expiry_of_a_running_run_is_seen_when_it_would_wait(apart: Services) -> None:
    run = asked(apart, expires_in=-1)
    assert apart.waits.expire_due(10) == []
    assert not apart.store.suspend(Checkpoint(run.id, run.epoch, []), ["apr_1"], 0, None)


def test_expiries_are_taken_in_portions_and_those_that_are_locked_hold_nobody_up(apart: Services) -> None:
    runs = [waiting(apart, expires_in=n - 10) for n in range(4)]
    with closing(psycopg2.connect(apart.config.database_url)) as other:
        other.cursor().execute("SELECT 1 FROM runs WHERE id = %s FOR NO KEY UPDATE", (runs[0].id,))
        assert [run.id for run in apart.waits.expire_due(1)] == [runs[1].id]
        assert {run.id for run in apart.waits.expire_due(9)} == {runs[2].id, runs[3].id}
        other.rollback()
    assert [run.id for run in apart.waits.expire_due(9)] == [runs[0].id]


def test_both_approvals_of_a_run_expire_at_once(apart: Services) -> None:
    run = waiting(apart, expires_in=-1, ids=("apr_1", "apr_2"))
    assert [woken.id for woken in apart.waits.expire_due(1)] == [run.id]
    assert {a.decision for a in apart.waits.page(DEV, None, run.id, None, 9)[0]} == {"expired"}


# Races.


@pytest.mark.parametrize("_", range(5))
def test_of_decisions_that_race_exactly_one_counts(web: Stack, decide: Decide, _: int) -> None:
    run = waiting(web.services)
    said = [("approved" if n % 2 else "denied", f"by {n}") for n in range(8)]
    answers = at_once(*(lambda d=d, c=c: decide(run, d, comment=c) for d, c in said))
    outcomes = [a.json() if a.status_code == 200 else resolved(a) for a in answers]
    assert all(outcome == outcomes[0] for outcome in outcomes), "everybody is told the same"
    assert (outcomes[0]["status"], outcomes[0]["comment"]) in said
    taken = [a.status_code == 200 for a in answers]
    assert taken == [decision == outcomes[0]["status"] for decision, _ in said]


@pytest.mark.parametrize("_", range(10))
def test_of_a_decision_and_an_expiry_that_race_exactly_one_counts(apart: Services, _: int) -> None:
    run = waiting(apart, expires_in=0.05)
    eventually(lambda: (datetime.now(UTC) - expiry(apart, run)) > timedelta(milliseconds=-5), what="the expiry")
    decided: Any
    decided, woken = at_once(
        lambda: apart.waits.decide(DEV, run.id, "apr_1", "approved", None), lambda: apart.waits.expire_due(10)
    )
    approval = apart.waits.find(DEV, run.id, "apr_1")
    assert decided.approval == approval
    assert decided.made == (decided.approval.decision == "approved")
    assert decided.run.woken + len(woken) == 1
    assert got(apart, run.id).status == "pending"


def expiry(services: Services, run: RunRecord) -> datetime:
    approval = services.waits.find(DEV, run.id, "apr_1")
    assert approval is not None
    assert approval.expires_at is not None
    return approval.expires_at


@pytest.mark.parametrize("_", range(10))
def test_a_decision_and_the_suspension_that_race_leave_no_run_waiting_for_it(apart: Services, _: int) -> None:
    run = asked(apart)
    decided: Any
    suspended, decided = at_once(
        lambda: apart.store.suspend(Checkpoint(run.id, run.epoch, [], "{}", 2), ["apr_1"], 0, None),
        lambda: apart.waits.decide(DEV, run.id, "apr_1", "approved", None),
    )
    assert decided.made
    assert decided.run.woken == suspended
    assert got(apart, run.id).status == ("pending" if suspended else "running")


# Runs that go nowhere any more.


def test_a_run_that_has_ended_or_is_being_cancelled_takes_no_decision(web: Stack, decide: Decide) -> None:
    run = waiting(web.services)
    web.services.store.request_cancel(run.id)
    problem(decide(run, "approved"), 409, "run_cancelling")
    assert got(web.services, run.id).status == "pending"
    ended(web.services, run)
    problem(decide(run, "approved"), 409, "run_ended")
    assert web.http.get("/approvals", params={"run": run.id, "status": "open"}).json()["approvals"] == []


# Lists.


@pytest.fixture
def listed(web: Stack, keys: dict[Principal, str]) -> Iterator[Callable[..., list[str]]]:
    def listed(who: Principal, **query: Any) -> list[str]:
        headers = {"Authorization": f"Bearer {keys[who]}"}
        page = web.http.get("/approvals", params=query, headers=headers).json()
        return [f"{a['run_id']}/{a['approval_id']}" for a in page["approvals"]]

    execute(web.env["DATABASE_URL"], "DELETE FROM approvals")
    yield listed
    execute(web.env["DATABASE_URL"], "DELETE FROM approvals")


def test_approvals_are_listed_to_the_owner_of_the_run_and_to_the_tenant_s_administrators(
    web: Stack, listed: Callable[..., list[str]]
) -> None:
    first, second = waiting(web.services, ANN), waiting(web.services, BOB, requires="operator")
    assert listed(ANN) == [f"{first.id}/apr_1"]
    assert listed(BOB) == [f"{second.id}/apr_1"]
    assert listed(ROOT) == [f"{second.id}/apr_1", f"{first.id}/apr_1"]
    assert listed(ABROAD) == []
    assert listed(BOB, run=first.id) == []
    assert listed(ROOT, run=first.id) == [f"{first.id}/apr_1"]


def test_approvals_are_listed_by_status(web: Stack, decide: Decide, listed: Callable[..., list[str]]) -> None:
    runs = [waiting(web.services, ANN, expires_in=1_000) for _ in range(3)]
    decide(runs[0], "approved", ANN)
    decide(runs[1], "denied", ANN)
    found = {status: listed(ANN, status=status) for status in ("approved", "denied", "open", "expired")}
    ids = [f"{run.id}/apr_1" for run in runs]
    assert found == {"approved": [ids[0]], "denied": [ids[1]], "open": [ids[2]], "expired": []}


def test_pages_of_approvals_leave_out_none_even_where_many_are_of_the_same_moment(
    web: Stack, keys: dict[Principal, str], listed: Callable[..., list[str]]
) -> None:
    for run in [waiting(web.services, ANN, ids=("apr_1", "apr_2", "apr_3")) for _ in range(3)]:
        execute(web.env["DATABASE_URL"], f"UPDATE approvals SET created_at = now() WHERE run_id = '{run.id}'")
    whole, pages, cursor = listed(ANN), [], None
    while True:
        query = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = web.http.get("/approvals", params=query, headers={"Authorization": f"Bearer {keys[ANN]}"}).json()
        pages += [f"{a['run_id']}/{a['approval_id']}" for a in page["approvals"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(whole) == 9
    assert pages == whole


# Bad requests.


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        "approved",
        {"decision": "expired"},
        {"decision": "APPROVED"},
        {"decision": None},
        {"decision": True},
        {"decision": ["approved"]},
        {"comment": "yes"},
        {"decision": "approved", "comment": 3},
        {"decision": "approved", "comment": "x" * 2_001},
        {"decision": "approved", "by": "root"},
    ],
)
def test_a_decision_that_does_not_fit_is_refused_and_changes_nothing(web: Stack, body: Any) -> None:
    run = waiting(web.services)
    problem(web.http.post(f"/runs/{run.id}/approvals/apr_1", json=body), 422, "invalid_request")
    assert got(web.services, run.id).status == "waiting"


def test_a_comment_of_exactly_the_limit_is_taken(web: Stack, decide: Decide) -> None:
    assert decide(waiting(web.services), "approved", comment="\U0001f600" * 2_000).status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        *("status=closed", "status=", "run=", "run=%00", "limit=0", "limit=201", "limit=x"),
        *("cursor=", "cursor=x", "cursor=1:2", "cursor=99999999999999999:a:b", "cursor=-1:a:b", "cursor=1:a:%00"),
    ],
)
def test_a_query_for_approvals_that_does_not_fit_is_refused(web: Stack, query: str) -> None:
    problem(web.http.get(f"/approvals?{query}"), 422, "invalid_request")


@pytest.mark.parametrize("query", ["cursor=9999999999999999:a:b", "cursor=0:a:b", "run=run_zzz"])
def test_a_query_for_approvals_that_merely_finds_nothing_or_all_is_answered(web: Stack, query: str) -> None:
    assert web.http.get(f"/approvals?{query}").status_code == 200


def test_approvals_are_shown_to_nobody_unknown(web: Stack) -> None:
    wrong = {"Authorization": "Bearer rt_wrong"}
    problem(web.http.get("/approvals", headers=wrong), 401, "unauthorized")
    answer = web.http.post("/runs/run_0/approvals/apr_1", json={"decision": "approved"}, headers=wrong)
    problem(answer, 401, "unauthorized")


# Many.


@pytest.fixture(scope="module")
def crowd(apart: Services) -> Services:
    """10,000 runs that wait until tomorrow, each for an approval too, among as many that have ended."""
    run = waiting(apart)
    same = "tenant_id, user_id, session_id, agent, input, metadata, on_disconnect, state, state_seq"
    url = apart.config.database_url
    execute(
        url,
        f"""INSERT INTO runs (id, status, wake_at, finished_at, {same})
            SELECT 'run_crowd' || n, CASE WHEN n % 2 = 0 THEN 'waiting' ELSE 'failed' END,
                   CASE WHEN n % 2 = 0 THEN now() + interval '1 day' END, CASE WHEN n % 2 = 1 THEN now() END, {same}
            FROM runs, generate_series(1, 20000) AS n WHERE id = '{run.id}'""",
    )
    execute(
        url,
        """INSERT INTO approvals (run_id, id, tenant_id, user_id, agent, label, requires, expires_at, decision)
           SELECT id, 'apr_1', tenant_id, user_id, agent, '?', 'owner', now() + interval '1 day',
                  CASE WHEN status = 'failed' THEN 'denied' END
           FROM runs WHERE id LIKE 'run_crowd%'""",
    )
    execute(url, "ANALYZE runs, approvals")
    return apart


@pytest.mark.parametrize("name", ["_LOCK_EXPIRING", "_WAKE_DUE"])
def test_the_janitor_reads_no_table_to_find_nothing_due_among_10_000_waiting_runs(crowd: Services, name: str) -> None:
    with crowd.database.session() as db:
        plan = "\n".join(line for (line,) in db.execute_sql(f"EXPLAIN {getattr(waits_module, name)}", (200,)))
    assert "Index" in plan
    assert "Seq Scan" not in plan, plan


def test_nothing_is_due_among_10_000_waiting_runs(crowd: Services) -> None:
    assert crowd.waits.expire_due(200) == []
    assert crowd.waits.wake_due(200) == []


# Times.


def test_a_run_whose_time_has_come_is_woken(apart: Services) -> None:
    due, later = waiting(apart, wake_in=-1), waiting(apart, wake_in=3_600)
    (woken,) = apart.waits.wake_due(10)
    assert (woken.id, woken.status, woken.requeue_reason, woken.wake_at) == (due.id, "pending", "resumed", None)
    assert got(apart, later.id).status == "waiting"
    assert apart.waits.wake_due(10) == []


def test_runs_whose_time_has_come_are_taken_in_portions_by_one_caller_each(apart: Services) -> None:
    runs = {waiting(apart, wake_in=n - 60).id for n in range(20)}
    taken = at_once(*[lambda: apart.waits.wake_due(5)] * 4)
    found = [run.id for portion in taken for run in portion]
    assert len(found) == len(set(found))
    while more := apart.waits.wake_due(5):
        found += [run.id for run in more]
    assert set(found) == runs
