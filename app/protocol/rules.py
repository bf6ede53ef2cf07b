"""What each event does to the state: one function per rule, one row per type in RULES.

docs/protocol.md states the same rules in words, app/console/reducer.js in JavaScript (shared golden files).
Unknown types and fields are ignored; so is an event that names an id the state does not hold, or a message
that is no longer open. Not responsible for seq, ts and purity (`reducer`).
"""

from collections.abc import Callable
from typing import Any

from app.protocol.items import IndexedState
from app.protocol.state import Item, output_of
from runtail.values import MAX_INT


def _members(payload: Item, *names: str) -> Item:
    """Those of the named members that the payload has."""
    return {name: payload[name] for name in names if name in payload}


# run.*


def _run_created(run: IndexedState, payload: Item) -> None:
    run.state["agent"] = payload["agent"]


def _run_started(run: IndexedState, payload: Item) -> None:
    run.state["status"] = "running"
    run.state["attempt"] = payload["attempt"]


def _run_resumed(run: IndexedState, payload: Item) -> None:
    _run_started(run, payload)
    _abandon(run, all=payload.get("restart", False))


def _run_step(run: IndexedState, payload: Item) -> None:
    _run_resumed(run, payload)
    if payload["restart"]:
        _start_over(run)


def _abandon(run: IndexedState, all: bool) -> None:
    """Agents run again from the top: what they had not finished writing they write anew."""
    run.messages.set_all(("open", "completed") if all else ("open",), "abandoned")
    run.follow_answer()


def _start_over(run: IndexedState) -> None:
    run.tool_calls.set_all(("running",), "cancelled")
    run.steps.set_all(("running", "completed", "failed"), "abandoned")
    run.set_plan([])
    run.state["sources"], run.state["checks"] = [], []


def _run_waiting(run: IndexedState, payload: Item) -> None:
    run.state["status"] = "waiting"


def _run_completed(run: IndexedState, payload: Item) -> None:
    run.state["output"] = output_of(run.state, payload)
    if payload["usage"] is not None:
        run.state["usage"] = payload["usage"]
    _end(run, "completed", payload)


def _run_failed(run: IndexedState, payload: Item) -> None:
    run.state["error"] = payload["error"]
    _end(run, "failed", payload)


def _run_cancelled(run: IndexedState, payload: Item) -> None:
    _end(run, "cancelled", payload)


def _end(run: IndexedState, status: str, payload: Item) -> None:
    run.state["status"] = status
    run.state["digest"] = payload["digest"]
    run.state["answer"]["status"] = "final"


# plan.* and step.*


def _plan_created(run: IndexedState, payload: Item) -> None:
    run.set_plan([{"id": s["id"], "title": s["title"], "status": "pending"} for s in payload["steps"]])


def _plan_updated(run: IndexedState, payload: Item) -> None:
    steps = payload["steps"]
    run.set_plan([{"id": s["id"], "title": s["title"], "status": run.plan_status(s["id"]) or "pending"} for s in steps])


def _step_started(run: IndexedState, payload: Item) -> None:
    step = {"id": payload["step_id"], **_members(payload, "title", "index")}
    run.steps.put({**step, "status": "running", "fraction": 0, "label": None})
    run.mark_plan(payload["step_id"], "running")


def _step_progress(run: IndexedState, payload: Item) -> None:
    if step := run.steps.find(payload["step_id"]):
        step.update(_members(payload, "fraction", "label"))


def _step_completed(run: IndexedState, payload: Item) -> None:
    if step := run.steps.find(payload["step_id"]):
        run.steps.set(step, status="completed", fraction=1, duration_ms=payload["duration_ms"])
        run.mark_plan(payload["step_id"], "completed")


def _step_failed(run: IndexedState, payload: Item) -> None:
    if step := run.steps.find(payload["step_id"]):
        run.steps.set(step, status="failed", error=payload["error"])
        run.mark_plan(payload["step_id"], "failed")


# message.*


def _message_started(run: IndexedState, payload: Item) -> None:
    message = {"id": payload["message_id"], "role": payload["role"], "text": "", "status": "open"}
    if payload.get("replaces"):
        run.abandon_answers()
    run.put_message(message)
    run.follow_answer()


def _message_delta(run: IndexedState, payload: Item) -> None:
    message = run.messages.find(payload["message_id"])
    if message and message["status"] == "open":
        _append_text(run, message, payload["text"])
        run.follow_answer()


def _append_text(run: IndexedState, message: Item, more: str) -> None:
    # CPython grows a text in place when a local is its only holder; otherwise a long message is copied per delta.
    text: str = message["text"]
    message["text"] = run.state["answer"]["text"] = ""
    text += more
    message["text"] = text


def _message_completed(run: IndexedState, payload: Item) -> None:
    message = run.messages.find(payload["message_id"])
    if message and message["status"] == "open":
        run.messages.set(message, status="completed")


# tool.*


def _tool_started(run: IndexedState, payload: Item) -> None:
    call = {
        "id": payload["tool_call_id"],
        **_members(payload, "name", "label"),
        "summary": payload.get("summary"),
        "step_id": payload.get("step_id"),
        "status": "running",
        "fraction": None,
    }
    run.tool_calls.put(call)


def _tool_progress(run: IndexedState, payload: Item) -> None:
    if call := run.tool_calls.find(payload["tool_call_id"]):
        call.update(_members(payload, "fraction"))
        if "label" in payload:
            call["progress_label"] = payload["label"]


def _tool_completed(run: IndexedState, payload: Item) -> None:
    if call := run.tool_calls.find(payload["tool_call_id"]):
        result = _members(payload, "preview", "truncated", "bytes", "duration_ms")
        run.tool_calls.set(call, status="completed", fraction=1, **result)


def _tool_failed(run: IndexedState, payload: Item) -> None:
    if call := run.tool_calls.find(payload["tool_call_id"]):
        status = "cancelled" if payload["code"] == "cancelled" else "failed"
        run.tool_calls.set(call, status=status, error_code=payload["code"], **_members(payload, "duration_ms"))


# approval.*, source.*, quality.*, input.*


def _approval_required(run: IndexedState, payload: Item) -> None:
    approval = {
        "id": payload["approval_id"],
        "tool_call_id": payload.get("tool_call_id"),
        **_members(payload, "label", "requires"),
        "expires_at": payload.get("expires_at"),
        "status": "open",
        "by": None,
        "comment": None,
    }
    run.approvals.put(approval)


def _approval_resolved(run: IndexedState, payload: Item) -> None:
    if approval := run.approvals.find(payload["approval_id"]):
        run.approvals.set(approval, status=payload["decision"], by=payload.get("by"), comment=payload.get("comment"))


def _source_added(run: IndexedState, payload: Item) -> None:
    source = {"id": payload.get("source_id"), "title": payload["title"]}
    run.state["sources"].append({**source, "url": payload.get("url"), "snippet": payload.get("snippet")})


def _quality_checked(run: IndexedState, payload: Item) -> None:
    check = _members(payload, "name", "passed")
    run.state["checks"].append({**check, "score": payload.get("score"), "note": payload.get("note")})


def _input_received(run: IndexedState, payload: Item) -> None:
    run.state["inputs"].append({"id": payload.get("input_id"), "text": payload["text"]})


# context.*


def _context_usage(run: IndexedState, payload: Item) -> None:
    known = _members(payload, "input_tokens", "output_tokens", "budget_used_pct", "cost")
    run.state["context"].update(known)
    for name in ("input_tokens", "output_tokens", "cost"):
        amount = payload.get(name)
        if amount is not None:
            run.state["usage"][name] = min(MAX_INT, run.state["usage"].get(name, 0) + amount)


def _compaction_started(run: IndexedState, payload: Item) -> None:
    run.state["context"]["compaction"] = {"status": "running"}


def _compaction_completed(run: IndexedState, payload: Item) -> None:
    sizes = _members(payload, "before_tokens", "after_tokens")
    run.state["context"]["compaction"] = {"status": "completed", **sizes}


# subagent.*


def _subagent_spawned(run: IndexedState, payload: Item) -> None:
    child = {"id": payload["child_run_id"], "label": payload.get("label"), "status": "spawned"}
    run.subagents.put({**child, "jobs_started": 0, "jobs_completed": 0})


def _subagent_status(run: IndexedState, payload: Item) -> None:
    if child := run.subagents.find(payload["child_run_id"]):
        child["status"] = payload["status"]


def _subagent_closed(run: IndexedState, payload: Item) -> None:
    if child := run.subagents.find(payload["child_run_id"]):
        child["status"] = payload.get("status", "closed")


def _job_started(run: IndexedState, payload: Item) -> None:
    if child := run.subagents.find(payload["child_run_id"]):
        child["jobs_started"] += 1


def _job_completed(run: IndexedState, payload: Item) -> None:
    if child := run.subagents.find(payload["child_run_id"]):
        child["jobs_completed"] += 1


RULES: dict[str, Callable[[IndexedState, dict[str, Any]], None]] = {
    "run.created": _run_created,
    "run.started": _run_started,
    "run.step": _run_step,
    "run.waiting": _run_waiting,
    "run.resumed": _run_resumed,
    "run.completed": _run_completed,
    "run.failed": _run_failed,
    "run.cancelled": _run_cancelled,
    "plan.created": _plan_created,
    "plan.updated": _plan_updated,
    "step.started": _step_started,
    "step.progress": _step_progress,
    "step.completed": _step_completed,
    "step.failed": _step_failed,
    "message.started": _message_started,
    "message.delta": _message_delta,
    "message.completed": _message_completed,
    "tool.started": _tool_started,
    "tool.progress": _tool_progress,
    "tool.completed": _tool_completed,
    "tool.failed": _tool_failed,
    "approval.required": _approval_required,
    "approval.resolved": _approval_resolved,
    "source.added": _source_added,
    "quality.checked": _quality_checked,
    "context.usage": _context_usage,
    "context.compaction.started": _compaction_started,
    "context.compaction.completed": _compaction_completed,
    "subagent.spawned": _subagent_spawned,
    "subagent.status": _subagent_status,
    "subagent.job.started": _job_started,
    "subagent.job.completed": _job_completed,
    "subagent.closed": _subagent_closed,
    "input.received": _input_received,
}
"""Types without a row (orchestration.*, custom.*) only move last_seq and last_ts."""
