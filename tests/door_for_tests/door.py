"""A hook that counts, masks and fails as it is told; and an agent that says whatever can be said."""

import json
import os
from typing import Any

from marshmallow import INCLUDE, Schema

from runtail import Run, ToolError, agent

SECRET = "Ms Doe"


def probe(type: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Count how often a payload has passed, and mask a name. HOOK_FAILS names the types at which it fails."""
    failing = os.environ.get("HOOK_FAILS", "").split()
    if type in failing and "garbage" in failing:
        return {"garbage": True} if type != "custom.note" else None  # type: ignore[return-value]
    if type in failing or "everything" in failing:
        raise LookupError(SECRET)
    masked: dict[str, Any] = json.loads(json.dumps(payload).replace(SECRET, "Ms X"))
    return {**masked, "passes": payload.get("passes", 0) + 1}


class DoorInput(Schema):
    """Whatever the test wants to say."""

    class Meta:
        unknown = INCLUDE


@agent("door", input=DoorInput)
def door(run: Run) -> object:
    """Say SECRET in every way; `way` says how it ends."""
    run.plan([f"Call {SECRET}"])
    with run.step(f"Call {SECRET}") as step:
        step.progress(0.5, SECRET)
        run.tool("look_up", str, SECRET, label=SECRET, summary={"who": SECRET})
        try:
            run.tool("fail", _fail, run)
        except ToolError:
            run.emit("custom.note", {"who": SECRET})
    run.source(SECRET)
    run.check("tone", True, note=SECRET)
    run.usage(input_tokens=1)
    heard = run.inputs(wait=True)
    approval = run.approve(f"Write to {SECRET}?")
    run.emit("custom.raw", {"raw": [heard == [SECRET], approval.comment == SECRET]})
    if run.input["way"] == "raises":
        raise ToolError("no", SECRET)
    if run.input["way"] == "stays":
        with run.step("Staying"), run.message() as message:
            message.write(SECRET)
            run.tool("stay", run.sleep, 50)
    return run.stream(["Dear ", SECRET, "."])


def _fail(run: Run) -> None:
    run.progress(0.5, SECRET)
    raise ToolError("no", SECRET)
