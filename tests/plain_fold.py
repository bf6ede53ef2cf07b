"""The rules of the fold in their plainest form, items looked for in their lists: what `app.protocol` is held against.

It is what stood in `app/protocol/rules.py` before items were found by indexes.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from app.protocol.state import Item, State, output_of
from runtail.values import MAX_INT


def _find(items: list[Item], id: str) -> Item | None:
    for item in reversed(items):  # what is still moving is near the end
        if item["id"] == id:
            return item
    return None


def _put(items: list[Item], item: Item) -> None:
    """Adds the item, or puts it in the place of the one with its id: a call that runs again keeps its id."""
    for index, present in enumerate(items):
        if present["id"] == item["id"]:
            items[index] = item
            return
    items.append(item)


def _members(payload: Item, *names: str) -> Item:
    """Those of the named members that the payload has."""
    return {name: payload[name] for name in names if name in payload}


# run.*


def _run_created(state: State, payload: Item) -> None:
    state["agent"] = payload["agent"]


def _run_started(state: State, payload: Item) -> None:
    state["status"] = "running"
    state["attempt"] = payload["attempt"]


def _run_resumed(state: State, payload: Item) -> None:
    _run_started(state, payload)
    _abandon(state, all=payload.get("restart", False))


def _run_step(state: State, payload: Item) -> None:
    _run_resumed(state, payload)
    if payload["restart"]:
        _start_over(state)


def _abandon(state: State, all: bool) -> None:
    """Agents run again from the top: what they had not finished writing they write anew."""
    for message in state["messages"]:
        if all or message["status"] == "open":
            message["status"] = "abandoned"
    _follow_answer(state)


def _start_over(state: State) -> None:
    for call in state["tool_calls"]:
        if call["status"] == "running":
            call["status"] = "cancelled"
    for step in state["steps"]:
        step["status"] = "abandoned"
    state["plan"], state["sources"], state["checks"] = [], [], []


def _run_waiting(state: State, payload: Item) -> None:
    state["status"] = "waiting"


def _run_completed(state: State, payload: Item) -> None:
    state["output"] = output_of(state, payload)
    if payload["usage"] is not None:
        state["usage"] = payload["usage"]
    _end(state, "completed", payload)


def _run_failed(state: State, payload: Item) -> None:
    state["error"] = payload["error"]
    _end(state, "failed", payload)


def _run_cancelled(state: State, payload: Item) -> None:
    _end(state, "cancelled", payload)


def _end(state: State, status: str, payload: Item) -> None:
    state["status"] = status
    state["digest"] = payload["digest"]
    state["answer"]["status"] = "final"


# plan.* and step.*


def _plan_created(state: State, payload: Item) -> None:
    state["plan"] = [{"id": s["id"], "title": s["title"], "status": "pending"} for s in payload["steps"]]


def _plan_updated(state: State, payload: Item) -> None:
    before = {entry["id"]: entry["status"] for entry in state["plan"]}
    _plan_created(state, payload)
    for entry in state["plan"]:
        entry["status"] = before.get(entry["id"], "pending")


def _step_started(state: State, payload: Item) -> None:
    step = {"id": payload["step_id"], **_members(payload, "title", "index")}
    _put(state["steps"], {**step, "status": "running", "fraction": 0, "label": None})
    _mark_plan(state, payload["step_id"], "running")


def _step_progress(state: State, payload: Item) -> None:
    if step := _find(state["steps"], payload["step_id"]):
        step.update(_members(payload, "fraction", "label"))


def _step_completed(state: State, payload: Item) -> None:
    if step := _find(state["steps"], payload["step_id"]):
        step.update(status="completed", fraction=1, duration_ms=payload["duration_ms"])
        _mark_plan(state, payload["step_id"], "completed")


def _step_failed(state: State, payload: Item) -> None:
    if step := _find(state["steps"], payload["step_id"]):
        step.update(status="failed", error=payload["error"])
        _mark_plan(state, payload["step_id"], "failed")


def _mark_plan(state: State, step_id: str, status: str) -> None:
    for entry in state["plan"]:
        if entry["id"] == step_id:
            entry["status"] = status


# message.*


def _message_started(state: State, payload: Item) -> None:
    for message in state["messages"] if payload.get("replaces") else ():
        if message["role"] == "assistant":
            message["status"] = "abandoned"
    message = {"id": payload["message_id"], "role": payload["role"], "text": "", "status": "open"}
    _put(state["messages"], message)
    _follow_answer(state)


def _message_delta(state: State, payload: Item) -> None:
    message = _find(state["messages"], payload["message_id"])
    if message and message["status"] == "open":
        _append_text(state, message, payload["text"])
        _follow_answer(state)


def _append_text(state: State, message: Item, more: str) -> None:
    # CPython grows a text in place when a local is its only holder; otherwise a long message is copied per delta.
    text: str = message["text"]
    message["text"] = state["answer"]["text"] = ""
    text += more
    message["text"] = text


def _message_completed(state: State, payload: Item) -> None:
    message = _find(state["messages"], payload["message_id"])
    if message and message["status"] == "open":
        message["status"] = "completed"


def _follow_answer(state: State) -> None:
    for message in reversed(state["messages"]):
        if message["role"] == "assistant" and message["status"] != "abandoned":
            state["answer"]["text"] = message["text"]
            return
    state["answer"]["text"] = ""


# tool.*


def _tool_started(state: State, payload: Item) -> None:
    call = {
        "id": payload["tool_call_id"],
        **_members(payload, "name", "label"),
        "summary": payload.get("summary"),
        "step_id": payload.get("step_id"),
        "status": "running",
        "fraction": None,
    }
    _put(state["tool_calls"], call)


def _tool_progress(state: State, payload: Item) -> None:
    if call := _find(state["tool_calls"], payload["tool_call_id"]):
        call.update(_members(payload, "fraction"))
        if "label" in payload:
            call["progress_label"] = payload["label"]


def _tool_completed(state: State, payload: Item) -> None:
    if call := _find(state["tool_calls"], payload["tool_call_id"]):
        result = _members(payload, "preview", "truncated", "bytes", "duration_ms")
        call.update(status="completed", fraction=1, **result)


def _tool_failed(state: State, payload: Item) -> None:
    if call := _find(state["tool_calls"], payload["tool_call_id"]):
        status = "cancelled" if payload["code"] == "cancelled" else "failed"
        call.update(status=status, error_code=payload["code"], **_members(payload, "duration_ms"))


# approval.*, source.*, quality.*, input.*


def _approval_required(state: State, payload: Item) -> None:
    approval = {
        "id": payload["approval_id"],
        "tool_call_id": payload.get("tool_call_id"),
        **_members(payload, "label", "requires"),
        "expires_at": payload.get("expires_at"),
        "status": "open",
        "by": None,
        "comment": None,
    }
    _put(state["approvals"], approval)


def _approval_resolved(state: State, payload: Item) -> None:
    if approval := _find(state["approvals"], payload["approval_id"]):
        approval.update(status=payload["decision"], by=payload.get("by"), comment=payload.get("comment"))


def _source_added(state: State, payload: Item) -> None:
    source = {"id": payload.get("source_id"), "title": payload["title"]}
    state["sources"].append({**source, "url": payload.get("url"), "snippet": payload.get("snippet")})


def _quality_checked(state: State, payload: Item) -> None:
    check = _members(payload, "name", "passed")
    state["checks"].append({**check, "score": payload.get("score"), "note": payload.get("note")})


def _input_received(state: State, payload: Item) -> None:
    state["inputs"].append({"id": payload.get("input_id"), "text": payload["text"]})


# context.*


def _context_usage(state: State, payload: Item) -> None:
    known = _members(payload, "input_tokens", "output_tokens", "budget_used_pct", "cost")
    state["context"].update(known)
    for name in ("input_tokens", "output_tokens", "cost"):
        amount = payload.get(name)
        if amount is not None:
            state["usage"][name] = min(MAX_INT, state["usage"].get(name, 0) + amount)


def _compaction_started(state: State, payload: Item) -> None:
    state["context"]["compaction"] = {"status": "running"}


def _compaction_completed(state: State, payload: Item) -> None:
    sizes = _members(payload, "before_tokens", "after_tokens")
    state["context"]["compaction"] = {"status": "completed", **sizes}


# subagent.*


def _subagent_spawned(state: State, payload: Item) -> None:
    child = {"id": payload["child_run_id"], "label": payload.get("label"), "status": "spawned"}
    _put(state["subagents"], {**child, "jobs_started": 0, "jobs_completed": 0})


def _subagent_status(state: State, payload: Item) -> None:
    if child := _find(state["subagents"], payload["child_run_id"]):
        child["status"] = payload["status"]


def _subagent_closed(state: State, payload: Item) -> None:
    if child := _find(state["subagents"], payload["child_run_id"]):
        child["status"] = payload.get("status", "closed")


def _job_started(state: State, payload: Item) -> None:
    if child := _find(state["subagents"], payload["child_run_id"]):
        child["jobs_started"] += 1


def _job_completed(state: State, payload: Item) -> None:
    if child := _find(state["subagents"], payload["child_run_id"]):
        child["jobs_completed"] += 1


RULES: dict[str, Callable[[State, dict[str, Any]], None]] = {
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


def fold_plainly(envelopes: Iterable[Mapping[str, Any]], state: State) -> State:
    """Moves `state` on by all events, in place."""
    for envelope in envelopes:
        if rule := RULES.get(envelope["type"]):
            rule(state, envelope["payload"])
        state["last_seq"], state["last_ts"] = envelope["seq"], envelope["ts"]
    return state
