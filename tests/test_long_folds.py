"""Long logs: an event takes the same time whatever the state holds, in Python and in the page's JavaScript."""

import copy
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.protocol.ending import Ending, closing
from app.protocol.reducer import Fold, State, initial
from app.storage.log_writer import LogWriter
from tests.plain_fold import fold_plainly
from tests.random_logs import RUN, Log, log, logs
from tests.speed import here
from tests.test_examples import needed

EVENTS = 100_000
SECONDS = 1.0
"""Of the processor, for so many events of any kind."""
REDUCER = Path(__file__).parent.parent / "app" / "console" / "reducer.js"
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.ndjson"))

Event = tuple[str, dict[str, Any]]


def _step(n: int) -> Event:
    return "step.started", {"step_id": f"s{n}", "title": "t", "index": n}


def _message(n: int, role: str = "assistant") -> Event:
    return "message.started", {"message_id": f"m{n}", "role": role}


def _tool(n: int) -> Event:
    return "tool.started", {"tool_call_id": f"c{n}", "name": "t", "label": "l"}


def _approval(n: int) -> Event:
    return "approval.required", {"approval_id": f"a{n}", "label": "l", "requires": "owner"}


def _over(n: int, restart: bool = True) -> Event:
    return "run.step", {"attempt": 2, "reason": "retry", "restart": restart}


HALF = EVENTS // 2
KINDS: dict[str, Callable[[int], Event]] = {
    "steps": _step,
    "steps that end in the order of their starts": lambda n: (
        _step(n) if n < HALF else ("step.completed", {"step_id": f"s{n - HALF}", "duration_ms": 1})
    ),
    "progress of the first of many steps": lambda n: (
        _step(n) if n < HALF else ("step.progress", {"step_id": "s0", "fraction": 0.5})
    ),
    "tool calls": _tool,
    "tool calls that fail": lambda n: (
        _tool(n) if n < HALF else ("tool.failed", {"tool_call_id": f"c{n - HALF}", "code": "x", "retryable": False})
    ),
    "messages": _message,
    "messages of the user behind one that comes and goes": lambda n: (
        _message(n, "user") if n < HALF else _message(EVENTS, "assistant" if n % 2 else "user")
    ),
    "messages that are closed": lambda n: (
        _message(n) if n < HALF else ("message.completed", {"message_id": f"m{n - HALF}", "chars": 0})
    ),
    "deltas of the first of many messages": lambda n: (
        _message(n) if n < HALF else ("message.delta", {"message_id": "m0", "text": "some words "})
    ),
    "approvals": _approval,
    "sources": lambda n: ("source.added", {"title": f"t{n}"}),
    "checks": lambda n: ("quality.checked", {"name": f"t{n}", "passed": True}),
    "subagents": lambda n: ("subagent.spawned", {"child_run_id": f"r{n}"}),
    "inputs": lambda n: ("input.received", {"text": "x"}),
    "usage": lambda n: ("context.usage", {"input_tokens": 1}),
    "restarts": lambda n: _message(n) if n < HALF else _over(n),
    "crashes": lambda n: _message(n) if n < HALF else (_message(0) if n % 2 else _over(n, restart=False)),
    "steps of a long plan": lambda n: (
        ("plan.created", {"steps": [{"id": f"s{k}", "title": "t"} for k in range(HALF)]}) if n == 0 else _step(n)
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def long_log(kind: str) -> Log:
    return log(*(KINDS[kind](n) for n in range(EVENTS)))


@kinds
def test_a_hundred_thousand_events_of_a_kind_are_folded_within_a_second(kind: str) -> None:
    envelopes, fold = long_log(kind), Fold(initial(RUN))
    began = time.process_time()
    for envelope in envelopes:
        fold.apply(envelope)
    taken = time.process_time() - began
    assert taken < here(SECONDS)
    assert fold.state["last_seq"] == EVENTS


@pytest.mark.parametrize("kind", ["steps", "tool calls", "messages", "approvals"])
def test_what_a_long_run_has_open_is_closed_as_fast(kind: str) -> None:
    fold = Fold(initial(RUN))
    for envelope in long_log(kind):
        fold.apply(envelope)
    writer = LogWriter(RUN, 1, fold.state, appended=EVENTS, archived=EVENTS)
    began = time.process_time()
    for type, payload in list(closing(writer.state, Ending.cancelled("requested"))):
        writer.add(type, payload)
    taken = time.process_time() - began
    assert taken < here(3 * SECONDS)  # their texts are made, too
    assert writer.head == 2 * EVENTS
    assert not list(closing(writer.state, Ending.cancelled("requested")))


@settings(deadline=None, max_examples=300)
@given(logs, st.integers(0, 30))
def test_the_state_is_to_the_letter_what_the_plain_rules_make_of_it(envelopes: Log, cut: int) -> None:
    fold = Fold(initial(RUN))
    for envelope in envelopes[:cut]:
        fold.apply(envelope)
    fold = Fold(json.loads(json.dumps(fold.state)))  # as it comes back from the database
    for envelope in envelopes[cut:]:
        fold.apply(envelope)
    plainly: State = fold_plainly(copy.deepcopy(envelopes), initial(RUN))
    assert json.dumps(fold.state) == json.dumps(plainly)


# JavaScript.

TIMED = """
const { fold, initial, reduce } = await import(process.argv[1]);
const { default: fs } = await import("node:fs");
const [events, how] = JSON.parse(fs.readFileSync(0, "utf8")), began = process.cpuUsage();
const first = initial(events[0].run_id), state = how === "fold" ? fold(events, first) : events.reduce(reduce, first);
const { user } = process.cpuUsage(began);
console.log(JSON.stringify({ seconds: user / 1e6, head: state.last_seq }));
"""

PURE = """
const { fold, initial, reduce } = await import(process.argv[1]);
const { default: fs } = await import("node:fs");
const text = JSON.stringify, answers = [];
for (const log of JSON.parse(fs.readFileSync(0, "utf8"))) {
  const first = initial("run_1"), states = [first], kept = [text(first)];
  log.forEach((event, n) => { // every other state is looked at as soon as it is there, the others at the end
    states.push(reduce(states.at(-1), event));
    kept.push(n % 2 ? text(states.at(-1)) : null);
  });
  if (states.some((state, n) => kept[n] !== null && kept[n] !== text(state))) throw new Error("an old state changed");
  for (let n = 0; n < states.length; n += 7) // another future of an old state, in one go and of a copy
    for (const state of [states[n], { ...states[n] }])
      if (text(fold(log.slice(n), state)) !== text(states.at(-1))) throw new Error("the chunks matter");
  answers.push(states.at(-1));
}
console.log(text(answers));
"""


def _node(script: str, value: object) -> Any:
    command = [needed("node"), "--input-type=module", "-e", script, REDUCER.as_uri()]
    done = subprocess.run(command, input=json.dumps(value), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("how", ["fold", "reduce"])
@kinds
def test_the_page_folds_as_many_within_a_second(kind: str, how: str) -> None:
    found = _node(TIMED, [long_log(kind), how])
    assert found["seconds"] < here(SECONDS)
    assert found["head"] == EVENTS


def test_the_page_folds_as_python_does_and_leaves_old_states_alone() -> None:
    drawn: list[Log] = []

    @settings(max_examples=150, database=None, deadline=None)
    @given(logs)
    def draw(envelopes: Log) -> None:
        drawn.append(envelopes)

    draw()
    expected = [fold_plainly(copy.deepcopy(envelopes), initial(RUN)) for envelopes in drawn]
    assert _node(PURE, drawn) == expected


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_page_folds_a_golden_log_to_its_golden_state(path: Path) -> None:
    events = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    script = PURE.replace('"run_1"', "log[0].run_id")
    assert _node(script, [events]) == [json.loads(path.with_suffix(".state.json").read_text("utf-8"))]
