"""`emit`: writes a number of events at a pace. For measuring and for tests of the log."""

import time

from marshmallow import RAISE, Schema, fields
from marshmallow.validate import OneOf, Range

from runtail import Run, agent


class EmitInput(Schema):
    """What to write, how often, and how fast."""

    class Meta:
        unknown = RAISE

    count = fields.Integer(required=True, strict=True, validate=Range(0, 1_000_000))
    interval_ms = fields.Float(load_default=0, validate=Range(0, 3_600_000))
    type = fields.String(load_default="message.delta", validate=OneOf(["message.delta", "custom.tick"]))
    text = fields.String(load_default="tick ")
    stamp = fields.Boolean(load_default=False)


@agent("emit", input=EmitInput)
def emit(run: Run) -> object:
    """Make exactly `count` writes of `type`, `interval_ms` apart; with `stamp` each carries the monotonic time."""
    if run.input["type"] == "custom.tick":
        for n in range(run.input["count"]):
            run.emit("custom.tick", {"n": n, "text": _text(run)})
            _pause(run)
        return {"count": run.input["count"]}
    with run.message() as message:
        for _ in range(run.input["count"]):
            message.write(_text(run))
            _pause(run)
    return None


def _text(run: Run) -> str:
    stamp = f"@{time.monotonic_ns()}@" if run.input["stamp"] else ""
    return f"{run.input['text']}{stamp}"


def _pause(run: Run) -> None:
    if run.input["interval_ms"]:
        run.sleep(run.input["interval_ms"] / 1_000)
