"""What is given to a verb is checked there, in the caller's stack: every argument of every verb."""

import enum
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from runtail import InvalidCall, InvalidEvent, Run, current_run, redaction, values
from runtail.checks import SECONDS_MAX, TEXT_MAX_CHARS, VERBS
from runtail.client import Runtail
from runtail.external import External, cleaned
from runtail.redaction import preview
from runtail.sinks import Nowhere
from runtail.values import MAX_DEPTH
from tests.harness import Stack
from tests.stored import ended, payloads

FINE: dict[str, dict[str, Any]] = {
    "plan": {"titles": ["One"]},
    "step": {"title": "One"},
    "progress": {"fraction": 0.5},
    "tool": {"name": "t", "function": lambda: 1},
    "exec": {"argv": ["/bin/true"]},
    "message": {},
    "stream": {"texts": ["a"]},
    "source": {"title": "A book"},
    "check": {"name": "tone", "passed": True},
    "usage": {},
    "emit": {"type": "custom.a", "payload": {}},
    "approve": {"label": "Sure?"},
    "inputs": {},
    "sleep": {"seconds": 0},
}
NO_TEXT = [b"bytes", 1, datetime.now(UTC), Decimal(1), ["a"], "x" * (TEXT_MAX_CHARS + 1)]
NO_NUMBER = ["0.5", math.nan, math.inf, -math.inf, None, b"1", True, Decimal("NaN"), 10**400]
NO_COUNT = ["3", -1, 1.0, True, 2**53, math.nan, Decimal(1)]
NO_SECONDS = [*NO_NUMBER[:3], SECONDS_MAX + 1, timedelta(days=100_000), datetime.now(UTC)]
NO_FLAG = ["yes", None, 1.0]
NO_PROGRAM = ["ls", b"ls", [], [1], ["ls", "a\0"], ["ls", "\ud83d"], None]
BAD: dict[str, dict[str, list[Any]]] = {
    "plan": {"titles": ["One", b"One", None, [1], {"a": 1}, *([text] for text in NO_TEXT)]},
    "step": {"title": [None, *NO_TEXT], "id": NO_TEXT, "timeout_s": NO_SECONDS},
    "progress": {"fraction": NO_NUMBER, "label": NO_TEXT},
    "tool": {
        "name": [None, *NO_TEXT],
        "function": ["f", None],
        "label": NO_TEXT,
        "summary": [["a"], {1: 2}, "a"],
        "retries": [*NO_COUNT, 10**7],
        "backoff": [None, *NO_SECONDS],
    },
    "exec": {
        "argv": NO_PROGRAM,
        "input": [b"bytes", 1],
        "timeout_s": NO_SECONDS,
        "cwd": [1, b"/", "a\0", "\ud83d"],
        "env": [["a"], {"A": 1}, {"A": "\0"}],
        "label": NO_TEXT,
    },
    "message": {"role": ["robot", None, 1]},
    "stream": {"texts": [None, 1]},
    "source": {"title": [None, *NO_TEXT], "url": NO_TEXT, "snippet": NO_TEXT},
    "check": {
        "name": [None, *NO_TEXT],
        "passed": NO_FLAG,
        "score": [value for value in NO_NUMBER if value is not None],
        "note": NO_TEXT,
    },
    "usage": {
        "input_tokens": NO_COUNT,
        "output_tokens": NO_COUNT,
        "cost": ["1", -1, math.nan, 1e300],
        "budget_used_pct": ["1", math.inf],
    },
    "emit": {"type": [None, *NO_TEXT], "payload": [None, [], "a", {1: 2}]},
    "approve": {
        "label": [None, *NO_TEXT],
        "tool_call_id": NO_TEXT,
        "expires_in": NO_SECONDS,
        "requires": ["anybody", None],
        "id": NO_TEXT,
    },
    "inputs": {"wait": NO_FLAG},
    "sleep": {"seconds": [None, *NO_SECONDS]},
}
CASES = [(verb, name, value) for verb, names in BAD.items() for name, values in names.items() for value in values]


def call(run: Run, verb: str, **arguments: Any) -> None:
    """Call the verb, to the end of its block."""
    found: Any = getattr(run, verb)(**{**FINE[verb], **arguments})
    if verb in ("step", "message"):
        with found:
            pass


def test_the_tables_of_this_test_are_those_of_the_sdk() -> None:
    assert {verb: set(names) for verb, names in BAD.items()} == {verb: set(rules) for verb, rules in VERBS.items()}


@pytest.mark.parametrize("verb", sorted(set(FINE) - {"approve"}))
def test_what_is_fine_is_taken_outside_a_run_too(verb: str) -> None:
    call(current_run(), verb)


@pytest.mark.parametrize(("verb", "name", "value"), CASES)
def test_what_cannot_be_used_is_refused_by_verb_and_argument(verb: str, name: str, value: object) -> None:
    with pytest.raises(InvalidCall, match=rf"^run\.{verb}(\('t'\))?: {name}\b"):
        call(current_run(), verb, **{name: value})


class Color(str, enum.Enum):  # noqa: UP042  # as it is written where 3.10 is wanted
    RED = "red"


class Kept(Nowhere):
    """Keeps what was added."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def add(self, type: str, payload: Mapping[str, Any], *, closes: bool = False) -> None:
        self.events.append((type, payload))


def test_a_member_of_an_enum_is_the_text_that_it_is_made_of() -> None:
    sink = Kept()
    run = Run(External(sink))
    run.source(Color.RED)
    run.emit("custom.color", {"color": Color.RED})
    assert run.tool("paint", lambda: Color.RED, label=Color.RED) is Color.RED
    texts = [sink.events[0][1]["title"], sink.events[1][1]["color"], sink.events[2][1]["label"]]
    assert [(type(text), text) for text in texts] == [(str, "red")] * 3
    assert sink.events[3][1]["preview"] == "red"


class Translation:
    """As Django's gettext_lazy: no text, but everything of one."""

    def __str__(self) -> str:
        return "translated"

    def encode(self) -> bytes:
        return b""

    def casefold(self) -> str:
        return ""


def test_what_behaves_as_a_text_is_one() -> None:
    sink = Kept()
    with Run(External(sink)).step(Translation()):  # type: ignore[arg-type]
        pass
    assert sink.events[0][1]["title"] == "translated"


def test_a_job_has_a_key_for_calls_that_it_makes_again_in_the_same_order() -> None:
    def keys(run: Run) -> list[str]:
        return [run.tool("pay", lambda: run.idempotency_key) for _ in range(2)]

    class OfRun(Kept):
        run_id = "run_1"

    assert keys(Run(External(OfRun()))) == keys(Run(External(OfRun()))) == ["run_1:1", "run_1:2"]
    run = Run(External(OfRun()))
    with pytest.raises(InvalidCall, match="there is none without a run"):
        run.parallel(lambda one: one.tool("pay", lambda: one.idempotency_key))
    with pytest.raises(InvalidCall, match="there is none without a run"):
        keys(current_run())


def test_a_step_with_a_time_limit_says_that_it_needs_a_worker_before_it_begins() -> None:
    sink = Kept()
    with (
        pytest.raises(InvalidCall, match="timeout_s needs a worker"),
        Run(External(sink)).step("S", timeout_s=1),
    ):
        pass
    assert sink.events == []


def test_a_branch_is_in_the_step_that_it_was_begun_in() -> None:
    sink = Kept()
    run = Run(External(sink))
    with run.step("Outer") as step:
        run.parallel(lambda one: one.tool("left", str), lambda one: one.tool("right", str))
    run.tool("outside", str)
    started = [payload.get("step_id") for type, payload in sink.events if type == "tool.started"]
    assert started == [step.id, step.id, None]


class OutOfTime(Exception):
    """As RQ throws it, once, wherever the job is."""


def test_the_end_of_a_job_s_time_is_not_taken_for_a_bad_value(monkeypatch: pytest.MonkeyPatch) -> None:
    class Row(Lazy):
        def __getitem__(self, key: str) -> int:
            raise OutOfTime

    for module in (values, redaction):
        monkeypatch.setattr(module, "out_of_time", lambda error: isinstance(error, OutOfTime))
    for use in (cleaned, preview, lambda row: redaction.shown({"row": row})):
        with pytest.raises(OutOfTime):
            use(Row())


class Lazy(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        raise RuntimeError("the database is gone")

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return iter(["key"])


def test_a_mapping_that_cannot_be_read_has_no_json_form() -> None:
    with pytest.raises(InvalidEvent, match="a Lazy whose items cannot be read"):
        cleaned({"rows": Lazy()})
    assert preview(Lazy())["preview"] == "<Lazy>"


@pytest.mark.parametrize("levels", [1, MAX_DEPTH - 1, MAX_DEPTH])
def test_a_result_of_as_many_levels_as_may_be_is_shown_in_its_event(levels: int) -> None:
    result: Any = 1
    for _ in range(levels):
        result = [result]
    shown = preview(result)
    assert cleaned(shown) == shown
    assert (shown["preview"] == result) == (levels < MAX_DEPTH)


def test_a_job_does_its_work_whatever_it_says_of_it(live: Stack, caplog: pytest.LogCaptureFixture) -> None:
    bad: Any = b"bytes"
    with Runtail(live.url) as client:
        runs: list[str] = []

        @client.job
        def report(run: Run) -> list[object]:
            runs.append(run.id)
            first, second = run.plan([bad, "x" * (TEXT_MAX_CHARS + 1)])
            with run.step(bad, id=bad):
                found = run.tool(bad, lambda: 1, label=bad, summary=bad, retries=bad, backoff=bad)
            with run.message(bad) as message:
                message.write("text")
            echoed = run.exec(["/bin/echo", "a"], label=bad)["stdout"]
            return [found, echoed, run.inputs(wait=bad) if first == second else []]

        assert report() == [1, "a\n", []]
    assert ended(live, runs[0]).output == [1, "a\n", []]
    assert len([record for record in caplog.records if "cannot" in record.message or " is " in record.message]) >= 9


def test_what_a_job_has_emitted_before_a_bad_value_is_kept(live: Stack) -> None:
    def bad(run: Run) -> list[Callable[[], None]]:
        return [
            lambda: run.usage(input_tokens=-1),
            lambda: run.source(1),  # type: ignore[arg-type]
            lambda: run.emit("custom.a", {"rows": Lazy()}),
            lambda: run.progress(math.nan),
            lambda: run.check("tone", "yes"),  # type: ignore[arg-type]
            lambda: run.emit("custom.NOT this", {}),
        ]

    with Runtail(live.url) as client:
        runs: list[str] = []

        @client.job
        def report(run: Run) -> str:
            runs.append(run.id)
            text = run.stream(["The answer."])
            for emit in bad(run):
                emit()
            run.source("A book")
            return text

        assert report() == "The answer."
    assert ended(live, runs[0]).output == "The answer."
    assert payloads(live, runs[0], "source.added") == [{"title": "A book"}]
