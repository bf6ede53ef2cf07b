"""One door for payloads: whatever is stored in a log has passed the hooks, once, and never under a lock."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg2
import pytest

from app.hooks import WITHHELD, Hooks
from app.protocol.events import SCHEMAS, Event
from app.storage.ownership import Ownership
from app.storage.run_store import WriterBeat
from app.verbs.external import External
from app.verbs.external_ends import Ends
from app.verbs.runs import Runs, StartRequest
from app.wiring import Services
from tests.conftest import StackMaker
from tests.external_writer import ExternalWriter, words
from tests.harness import AGENTS, DEV, ROOT, Stack, eventually, problem

SECRET = "Ms Doe"
WITH_HOOKS = os.pathsep.join([str(AGENTS), str(ROOT / "tests" / "door_for_tests")])


def play(stack: Stack, way: str) -> str:
    """A run of the agent `door` that is told and decided upon by its user."""
    run_id = stack.start("door", {"way": way, "who": SECRET})
    eventually(lambda: stack.read(run_id)["status"] == "waiting", 20, "the wait for an input")
    assert stack.http.post(f"/runs/{run_id}/input", json={"text": SECRET}).status_code == 202
    eventually(lambda: _ask(stack, run_id), 20, "the question")
    return run_id


def _ask(stack: Stack, run_id: str) -> bool:
    approvals = stack.read(run_id)["state"]["approvals"]
    if not approvals or stack.read(run_id)["status"] != "waiting":
        return False
    (listed,) = [one for one in stack.http.get("/approvals").json()["approvals"] if one["run_id"] == run_id]
    assert SECRET not in listed["label"], "whoever decides sees what went out"
    body = {"decision": "approved", "comment": SECRET}
    return stack.http.post(f"/runs/{run_id}/approvals/{approvals[0]['id']}", json=body).status_code == 200


def _stay(stack: Stack) -> str:
    run_id = play(stack, "stays")
    running = ("running", "running")
    eventually(
        lambda: (stack.read(run_id)["status"], stack.read(run_id)["state"]["tool_calls"][-1]["status"]) == running, 20
    )
    eventually(lambda: stack.read(run_id)["state"]["tool_calls"][-1]["name"] == "stay", 20)
    stack.http.post(f"/runs/{run_id}/cancel")
    return run_id


def external(stack: Stack, finish: dict[str, Any]) -> str:
    """An external run whose user speaks, too, and whose writer is followed by another one."""
    names = {"Idempotency-Key": f"door-{finish['status']}"}
    writer = ExternalWriter.start(stack.http, names, input={"who": SECRET})
    asked = ("approval.required", {"approval_id": "apr_1", "label": f"Write to {SECRET}?", "requires": "owner"})
    assert writer.append(*words(SECRET), asked, ("tool.started", _tool()), ("step.started", _step())).status_code == 200
    stack.http.post(f"/runs/{writer.run_id}/input", json={"text": SECRET}).raise_for_status()
    decision = {"decision": "denied", "comment": SECRET}
    stack.http.post(f"/runs/{writer.run_id}/approvals/apr_1", json=decision).raise_for_status()
    told = writer.beat(inputs_after=0).json()
    assert [input["text"] for input in told["inputs"]] == [SECRET], "writers get what was sent"
    assert [decided["comment"] for decided in told["decisions"]] == [SECRET]
    writer = ExternalWriter.start(stack.http, names, input={"who": SECRET})
    writer.append(("tool.started", _tool()), ("step.started", _step()))
    assert writer.finish(finish).status_code == 200
    return writer.run_id


def _tool() -> dict[str, Any]:
    return {"tool_call_id": "t1", "name": "call", "label": SECRET, "summary": SECRET}


def _step() -> dict[str, Any]:
    return {"step_id": "s1", "title": SECRET, "index": 0}


@pytest.fixture(scope="module")
def logs(module_stack: StackMaker) -> dict[str, list[dict[str, Any]]]:
    """The logs of runs that end in every way."""
    stack = module_stack(PYTHONPATH=WITH_HOOKS)
    stack.start_web()
    stack.start_worker()
    runs = {
        "completed": play(stack, "returns"),
        "failed": play(stack, "raises"),
        "cancelled": _stay(stack),
        "external completed": external(stack, {"status": "completed"}),
        "external failed": external(stack, {"status": "failed", "error": {"code": "no", "message": SECRET}}),
        "external cancelled": external(stack, {"status": "cancelled"}),
    }
    unanswered = ExternalWriter.start(stack.http)
    unanswered.complete(output=f"Dear {SECRET}").raise_for_status()
    waiting = stack.start("door", {"way": "returns"})
    eventually(lambda: stack.read(waiting)["status"] == "waiting", 20)
    stack.http.post(f"/runs/{waiting}/cancel")
    for name, run_id in {**runs, "external text": unanswered.run_id, "cancelled while it waited": waiting}.items():
        run = stack.ended(run_id, 20)
        assert run["status"] == name.split()[-1] or name in ("external text", "cancelled while it waited")
        assert SECRET not in str({**run, "input": None}), "what is made of the log is as the log"
        runs[name] = run_id
    return {name: stack.events(run_id) for name, run_id in runs.items()}


def test_every_stored_payload_has_passed_the_hooks_once(logs: dict[str, list[dict[str, Any]]]) -> None:
    passed: dict[str, Counter[int]] = {}
    for event in (event for log in logs.values() for event in log):
        passed.setdefault(event["type"], Counter())[event["payload"].get("passes", 0)] += 1
    assert {type: set(counts) for type, counts in passed.items()} == {type: {1} for type in passed}
    theirs = {"context.compaction", "orchestration", "subagent"}  # writers make them, past the same call as the others
    ours = {type for type in SCHEMAS if not type.startswith(tuple(theirs))} - {"plan.updated"}
    assert ours <= set(passed)


def test_nothing_that_a_hook_masks_is_in_a_log(logs: dict[str, list[dict[str, Any]]]) -> None:
    assert SECRET not in json.dumps(logs)
    assert "Ms X" in json.dumps(logs)


def test_agents_get_what_was_sent(logs: dict[str, list[dict[str, Any]]]) -> None:
    (raw,) = [event["payload"]["raw"] for event in logs["completed"] if event["type"] == "custom.raw"]
    assert raw == [True, True]


def test_a_writer_returns_what_it_streamed_although_the_log_has_it_masked(apart: Services) -> None:
    def mask(type: str, payload: dict[str, Any]) -> None:
        if type == "message.delta":
            payload["text"] = payload["text"].replace(SECRET, "Ms X")

    verbs = External(hooked(apart, Probe(mask)))
    started = verbs.start(DEV_WRITER, StartRequest("external", {}, None, "continue", None, {}, None, None))
    assert started.tokens is not None
    assert started.tokens.writer is not None
    writer = verbs.authorise(started.run.id, started.tokens.writer, None)
    verbs.append(writer, 1, [{"type": type, "payload": payload} for type, payload in words("Dear ", SECRET)], 0, 100)
    run = verbs.finish(writer, 2, {"status": "completed", "output": f"Dear {SECRET}"})
    assert (run.status, run.output) == ("completed", "Dear Ms X"), run.error


# Hooks that fail.


class Probe:
    """A hook of this process: it does as `check` says at each payload."""

    def __init__(self, check: Callable[[str, dict[str, Any]], None]) -> None:
        self._check = check
        self.types: list[str] = []

    def __call__(self, type: str, payload: dict[str, Any]) -> dict[str, Any]:
        self.types.append(type)
        self._check(type, payload)
        return payload


def hooked(services: Services, hook: Probe) -> Services:
    """The services with this hook."""
    hooks = Hooks([hook])
    return replace(services, hooks=hooks, ownership=Ownership(services.store, services.log, hooks))


def _played(services: Services, ending: dict[str, Any]) -> Iterator[str]:
    """An external run, step by step, past HTTP; gives its id before each."""
    verbs = External(services)
    request = StartRequest("external", {}, None, "continue", None, {}, None, f"key-{os.urandom(4).hex()}")
    started = verbs.start(DEV_WRITER, request)
    run = started.run
    yield run.id
    asked = {"approval_id": "apr_1", "label": "Go?", "requires": "owner"}
    assert started.tokens is not None
    assert started.tokens.writer is not None
    writer = verbs.authorise(run.id, started.tokens.writer, None)
    verbs.append(writer, 1, [{"type": "approval.required", "payload": asked}], 0, 100)
    yield run.id
    services.waits.add_input(DEV, run.id, SECRET, None)
    services.waits.decide(DEV, run.id, "apr_1", "approved", SECRET)
    verbs.append(writer, 2, [{"type": "step.started", "payload": _step()}], 0, 100)
    yield run.id
    again = verbs.start(DEV_WRITER, request)
    assert again.tokens is not None
    assert again.tokens.writer is not None
    verbs.finish(verbs.authorise(run.id, again.tokens.writer, None), 1, ending)
    yield run.id


DEV_WRITER = replace(DEV, writer=True)
ENDINGS: list[dict[str, Any]] = [
    {"status": "completed", "output": {"n": 1}},
    {"status": "completed", "output": f"Dear {SECRET}"},
    {"status": "failed", "error": {"code": "no", "message": SECRET}},
    {"status": "cancelled"},
]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending["status"])
def test_no_hook_is_called_while_a_row_is_locked(apart: Services, ending: dict[str, Any]) -> None:
    """Another connection can lock the rows of all runs at any moment in which a hook is called."""
    with closing(psycopg2.connect(apart.config.database_url)) as other:

        def look(type: str, payload: dict[str, Any]) -> None:
            with other, other.cursor() as cursor:
                cursor.execute("SELECT 1 FROM runs FOR UPDATE NOWAIT")
                cursor.execute("SELECT 1 FROM writers FOR UPDATE NOWAIT")
                cursor.execute("SELECT 1 FROM approvals FOR UPDATE NOWAIT")

        probe = Probe(look)
        services = hooked(apart, probe)
        for run_id in _played(services, ending):
            assert WITHHELD not in str(_payloads(apart.store.events(run_id, 0, 100))), "a hook failed: a row was locked"
    assert {"run.step", "input.received", "approval.resolved", f"run.{ending['status']}"} <= set(probe.types)


def _payloads(events: list[Event]) -> list[tuple[str, dict[str, Any]]]:
    return [(event.type, event.envelope()["payload"]) for event in events]


FACTS = {"run.started", "run.step", "input.received", "approval.resolved", "step.failed", "run.failed", "run.cancelled"}


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending["status"])
def test_what_has_happened_goes_out_without_its_texts_where_a_hook_fails(
    apart: Services, ending: dict[str, Any]
) -> None:
    def fail(type: str, payload: dict[str, Any]) -> None:
        if type in FACTS:
            raise LookupError(SECRET)

    *_, run_id = _played(hooked(apart, Probe(fail)), ending)
    log = _payloads(apart.store.events(run_id, 0, 100))
    types = [type for type, _ in log]
    assert types[-1] == f"run.{ending['status']}"
    assert {"input.received", "approval.resolved", "run.step"} <= set(types)
    held = dict(log)
    assert held["input.received"] == {"input_id": "inp_1", "text": WITHHELD}
    told = {"approval_id": "apr_1", "decision": "approved", "by": WITHHELD, "comment": WITHHELD}
    assert held["approval.resolved"] == told
    assert held["run.step"] == {"attempt": 2, "reason": "retry", "restart": True}
    if ending["status"] == "failed":
        assert held["run.failed"]["error"] == {"code": "no", "message": WITHHELD}
    run = apart.store.get(run_id)
    assert run is not None
    assert run.digest == held[types[-1]]["digest"]
    assert SECRET not in str([run.error, *(payload for type, payload in log if type in FACTS)])


def test_an_output_that_a_hook_refuses_fails_the_run_and_not_the_request(apart: Services) -> None:
    def refuse(type: str, payload: dict[str, Any]) -> None:
        if type.startswith("run."):
            raise SystemExit

    def begin(type: str, payload: dict[str, Any]) -> None:
        if type not in ("run.created",):
            refuse(type, payload)

    *_, run_id = _played(hooked(apart, Probe(begin)), ENDINGS[0])
    run = apart.store.get(run_id)
    assert run is not None
    assert (run.status, run.error) == ("failed", {"code": "hook_failed", "message": WITHHELD})


def test_a_lost_writer_ends_although_the_hook_fails_at_everything(apart: Services) -> None:
    *_, run_id = _unfinished(apart)
    (seen,) = [beat for beat in apart.external.beats() if beat.run_id == run_id]

    def fail(type: str, payload: dict[str, Any]) -> None:
        raise LookupError(type)

    assert _ended_by_a_janitor(hooked(apart, Probe(fail)), seen)
    run = apart.store.get(run_id)
    assert run is not None
    assert (run.status, (run.error or {})["code"]) == ("failed", "writer_lost")


def _unfinished(services: Services) -> Iterator[str]:
    steps = _played(services, ENDINGS[0])
    yield next(steps)
    yield next(steps)


def _ended_by_a_janitor(services: Services, seen: WriterBeat) -> bool:
    return Ends(services).end_lost(seen, ignore_heartbeat=False)


def test_a_waiting_run_is_cancelled_although_the_hook_fails_at_everything(apart: Services) -> None:
    def fail(type: str, payload: dict[str, Any]) -> None:
        raise LookupError(type)

    verbs = External(apart)
    run = verbs.start(DEV_WRITER, StartRequest("external", {}, None, "continue", None, {}, None, None)).run
    Runs(hooked(apart, Probe(fail))).cancel(DEV, run.id)
    assert (apart.store.get(run.id) or run).cancel_requested


@pytest.fixture
def failing(stack: StackMaker) -> Callable[[str], Stack]:
    """A web process and a worker whose hook fails at these types."""

    def make(types: str) -> Stack:
        made = stack(PYTHONPATH=WITH_HOOKS, HOOK_FAILS=types)
        made.start_web()
        made.start_worker()
        return made

    return make


def test_what_has_not_happened_is_refused_with_a_code(failing: Callable[[str], Stack]) -> None:
    stack = failing("run.created")
    problem(stack.http.post("/runs", json={"agent": "emit", "input": {"count": 1}}), 422, "hook_failed")
    problem(stack.http.post("/runs", json={"agent": "external"}), 422, "hook_failed")


def test_a_writers_own_event_is_refused_with_its_line(failing: Callable[[str], Stack]) -> None:
    stack = failing("garbage custom.note message.delta")
    writer = ExternalWriter.start(stack.http)
    document = problem(writer.append(("custom.other", {}), ("custom.note", {})), 422, "hook_failed")
    assert "Line 2" in document["detail"]
    writer.seq = 0
    problem(writer.append(*words("a")), 422, "hook_failed")
    writer.seq = 0
    assert writer.append(("custom.other", {})).json()["head"] == 3, "nothing of the refused batches was taken"


@pytest.mark.parametrize(
    ("types", "status", "code"),
    [
        ("custom.note", "failed", "hook_failed"),
        ("garbage custom.note", "failed", "hook_failed"),
        ("run.completed", "failed", "hook_failed"),
        ("garbage run.completed run.failed", "failed", "hook_failed"),
        ("run.started tool.completed tool.failed step.completed run.waiting run.resumed", "completed", None),
        ("input.received approval.resolved message.completed", "completed", None),
    ],
)
def test_a_run_of_a_worker_ends_whatever_a_hook_does(
    failing: Callable[[str], Stack], types: str, status: str, code: str | None
) -> None:
    stack = failing(types)
    run_id = stack.start("door", {"way": "returns"})

    def over() -> bool:
        run = stack.read(run_id)
        if run["status"] == "waiting" and not run["state"]["inputs"]:
            stack.http.post(f"/runs/{run_id}/input", json={"text": SECRET}, headers={"Idempotency-Key": "1"})
        for approval in run["state"]["approvals"]:
            body = {"decision": "approved", "comment": SECRET}
            stack.http.post(f"/runs/{run_id}/approvals/{approval['id']}", json=body)
        return bool(run["finished_at"])

    eventually(over, 30, "the end")
    run = stack.read(run_id)
    assert (run["status"], (run["error"] or {}).get("code"), run["attempt"]) == (status, code, 1)
    assert SECRET not in json.dumps(stack.events(run_id))
    if status == "completed":
        (raw,) = [event["payload"]["raw"] for event in stack.events(run_id) if event["type"] == "custom.raw"]
        assert raw == [True, True], "agents get what was sent, whatever the log has of it"
