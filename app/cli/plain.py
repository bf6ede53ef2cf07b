"""A followed run as plain lines, for pipes and files: a line per event, and text as it comes.

Responsible for words that are safe to print: what an agent wrote never controls a terminal. Not responsible for
the live view (`app.cli.render`).
"""

import json
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self, TextIO

from app.protocol.reducer import ENDED, Envelope, Fold, State

CUSTOM_MAX_CHARS = 200
PROGRESS_STEPS = 4
"""Progress without a new label is worth a line at every quarter."""

_CONTROLS = (*range(0x20), *range(0x7F, 0xA0))
_REORDERING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""What has text read in another order than it is written in: `gpj.exe` as `exe.jpg`."""
_UNSAFE = {code: "\ufffd" for code in (*_CONTROLS, *_REORDERING) if chr(code) not in "\n\t"}

Item = Mapping[str, Any]


def printable(text: object) -> str:
    """The text without what a terminal would take as a command."""
    return str(text).replace("\r\n", "\n").translate(_UNSAFE)


def one_line(text: object) -> str:
    """The same, on one line."""
    return " ".join(printable(text).split())


def seconds(item: Item) -> str:
    """What an item took, such as "2.1 s"; empty where that is not known."""
    ms = item.get("duration_ms")
    return "" if ms is None else f"{ms / 1_000:.1f} s"


class Lines:
    """Appends to `out`; what is said about the connection goes to `notes`. No control codes."""

    def __init__(self, out: TextIO, notes: TextIO, since: int = 0) -> None:
        """
        :param since: events up to this seq are not shown.
        """
        self._out = out
        self._notes = notes
        self._since = since
        self._in_text = False
        self._told: dict[str, tuple[str | None, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_text()

    def show(self, envelope: Envelope, fold: Fold) -> None:
        """Print what is new. A snapshot stands for the events that it replaces.

        :param fold: of the run up to this event.
        """
        state = fold.state
        if envelope["type"] == "stream.snapshot":
            self._line(f"[stream] goes on after event {state['last_seq']}; the answer so far:")
            self._text(state["answer"]["text"])
            for approval in open_approvals(state):
                self._line(f"[approval] {_asked(approval, state)}")
        elif envelope.get("seq", 0) <= self._since:
            return
        elif envelope["type"] == "message.delta":
            self._text(envelope["payload"]["text"])
        elif line := self._describe(envelope["type"], envelope["payload"], fold):
            self._line(line)

    @property
    def still(self) -> AbstractContextManager[object]:
        """Nobody else looks at what was shown."""
        return nullcontext()

    def trouble(self, reason: str | None) -> None:
        """The connection is lost, or with None is back."""
        text = "Connected again." if reason is None else f"{one_line(reason)} Trying again."
        print(text, file=self._notes, flush=True)

    def _describe(self, type: str, payload: Item, fold: Fold) -> str | None:
        if type in ("step.progress", "tool.progress"):
            return self._progress(type.partition(".")[0], payload, fold)
        if describe := _DESCRIPTIONS.get(type):
            return describe(payload, fold)
        if type.startswith("custom."):
            shown = json.dumps(payload, ensure_ascii=False)
            return f"[{type}] {one_line(shown)[:CUSTOM_MAX_CHARS]}"
        return None

    def _progress(self, kind: str, payload: Item, fold: Fold) -> str | None:
        """Each new label and each quarter of the way, but nothing in the middle of a text."""
        label, fraction = payload.get("label"), payload.get("fraction", 0)
        item_id = payload["step_id"] if kind == "step" else payload["tool_call_id"]
        told = (label, math.floor(fraction * PROGRESS_STEPS))
        if self._in_text or self._told.get(item_id) == told:
            return None
        self._told[item_id] = told
        title = _step(payload, fold) if kind == "step" else _call(payload, fold)
        return f"[{kind}] {title}: {fraction:.0%}{_more(label)}"

    def _line(self, text: str) -> None:
        self._end_text()
        print(text, file=self._out, flush=True)

    def _text(self, text: str) -> None:
        shown = printable(text)
        if shown:
            self._out.write(shown)
            self._out.flush()
            self._in_text = not shown.endswith("\n")

    def _end_text(self) -> None:
        if self._in_text:
            self._out.write("\n")
            self._out.flush()
            self._in_text = False


def open_approvals(state: State) -> list[Item]:
    """What somebody has to decide now."""
    return [] if state["status"] in ENDED else [item for item in state["approvals"] if item["status"] == "open"]


def how_to_decide(approval_id: str, state: State) -> str:
    """The commands that decide an approval."""
    return one_line(f"{typed()} approve {state['run_id']} {approval_id}, or {typed()} deny …")


def _asked(approval: Item, state: State) -> str:
    needed = f"{one_line(approval['label'])}: needed from {one_line(approval['requires'])}"
    return f"{needed}. To decide: {how_to_decide(approval['id'], state)}"


def _step(payload: Item, fold: Fold) -> str:
    id = payload["step_id"]
    return one_line((fold.step(id) or {}).get("title", id))


def _call(payload: Item, fold: Fold) -> str:
    id = payload["tool_call_id"]
    return one_line((fold.tool_call(id) or {}).get("label", id))


def _more(text: object, before: str = ", ") -> str:
    return f"{before}{one_line(text)}" if text else ""


def _run_step(payload: Item, fold: Fold) -> str:
    again = "; it starts over, what it wrote before does not count" if payload["restart"] else ""
    return f"[run] attempt {payload['attempt']} ({one_line(payload['reason'])}){again}"


def _plan(payload: Item, fold: Fold) -> str:
    titles = (f"{n}. {one_line(step['title'])}" for n, step in enumerate(payload["steps"], 1))
    return f"[plan] {'; '.join(titles)}"


def _completed(payload: Item, fold: Fold) -> str:
    used = ", ".join(f"{one_line(name)} {amount}" for name, amount in fold.state["usage"].items())
    return f"[run] completed{_more(used, ': ')}"


_DESCRIPTIONS: dict[str, Callable[[Item, Fold], str]] = {
    "run.created": lambda p, f: f"[run] {one_line(f.state['run_id'])}, agent {one_line(p['agent'])}",
    "run.started": lambda p, f: f"[run] started, attempt {p['attempt']}",
    "run.step": _run_step,
    "run.waiting": lambda p, f: f"[run] waits for {one_line(p['on'])}",
    "run.resumed": lambda p, f: "[run] goes on",
    "run.completed": _completed,
    "run.failed": lambda p, f: f"[run] failed: {one_line(p['error']['message'])} ({one_line(p['error']['code'])})",
    "run.cancelled": lambda p, f: f"[run] cancelled ({one_line(p['reason'])})",
    "plan.created": _plan,
    "plan.updated": _plan,
    "step.started": lambda p, f: f"[step] {one_line(p['title'])}",
    "step.completed": lambda p, f: f"[step] {_step(p, f)}: done in {seconds(p)}",
    "step.failed": lambda p, f: f"[step] {_step(p, f)}: failed{_more(p['error']['message'])}",
    "tool.started": lambda p, f: f"[tool] {one_line(p['label'])}",
    "tool.completed": lambda p, f: f"[tool] {_call(p, f)}: done in {seconds(p)}",
    "tool.failed": lambda p, f: f"[tool] {_call(p, f)}: failed ({one_line(p['code'])}){_more(p.get('message'))}",
    "approval.required": lambda p, f: f"[approval] {_asked({**p, 'id': p['approval_id']}, f.state)}",
    "approval.resolved": lambda p, f: (
        f"[approval] {one_line(p['decision'])}{_more(p.get('by'), ' by ')}{_more(p.get('comment'), ': ')}"
    ),
    "source.added": lambda p, f: f"[source] {one_line(p['title'])}{_more(p.get('snippet'), ': ')}",
    "quality.checked": lambda p, f: (
        f"[check] {one_line(p['name'])}: {'passed' if p['passed'] else 'not passed'}{_more(p.get('note'))}"
    ),
    "subagent.spawned": lambda p, f: f"[subagent] {one_line(p['child_run_id'])}{_more(p.get('label'))}",
    "subagent.closed": lambda p, f: f"[subagent] {one_line(p['child_run_id'])}: closed",
    "input.received": lambda p, f: f"[input] {one_line(p['text'])}",
}
"""Types without a row make no line."""


def typed() -> str:
    """How this command line was called, so that a command that a message shows works as it is shown."""
    called = sys.argv[0]
    if Path(called).name != "runtail":
        return f"{sys.executable} -m app.cli"
    on_path = shutil.which("runtail")
    return "runtail" if on_path and Path(on_path).resolve() == Path(called).resolve() else shlex.quote(called)
