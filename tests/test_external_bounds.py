"""What an external run may keep, and ends that fail: one run is bounded, and harms no process again and again."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest

from app.cli.verification import Claim, verify
from app.protocol.events import dumps
from app.protocol.reducer import fold, initial
from app.protocol.sizes import OUTPUT_BYTES
from app.storage.run_store import (
    BYTES,
    CONTAINERS,
    KEPT_BYTES_MAX,
    KEPT_CONTAINERS_MAX,
    KEPT_MAX,
    Principal,
    ending_seconds,
)
from app.verbs.external import External
from app.verbs.external_payloads import REPLACED_FREE_BYTES, kept_of
from app.verbs.runs import StartRequest
from app.wiring import Services
from tests.conftest import StackMaker
from tests.external_writer import ExternalWriter, Line
from tests.harness import Stack, eventually, problem
from tests.stored import ended, events, row
from workers.janitor.lost_writers import LostWriters

DEV = Principal("dev", "dev", admin=True, writer=True)
BATCH = 1_000


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """A web process, no worker."""
    stack = module_stack()
    stack.start_web()
    return stack


KINDS: dict[str, Callable[[int], Line]] = {
    "steps": lambda n: ("step.started", {"step_id": f"s{n}", "title": "t", "index": n}),
    "tool_calls": lambda n: ("tool.started", {"tool_call_id": f"c{n}", "name": "t", "label": "l"}),
    "messages": lambda n: ("message.started", {"message_id": f"m{n}", "role": "assistant"}),
    "sources": lambda n: ("source.added", {"title": f"t{n}"}),
    "checks": lambda n: ("quality.checked", {"name": f"t{n}", "passed": True}),
    "subagents": lambda n: ("subagent.spawned", {"child_run_id": f"r{n}"}),
}


def fill(writer: ExternalWriter, kind: str, count: int) -> None:
    """So many items, in batches."""
    for first in range(0, count, BATCH):
        lines = [KINDS[kind](n) for n in range(first, min(first + BATCH, count))]
        answer = writer.append(*lines)
        assert answer.status_code == 200, answer.text


# What a run keeps.


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_keeps_so_many_items_of_a_kind_and_the_next_one_is_refused(web: Stack, kind: str) -> None:
    writer = ExternalWriter.start(web.http)
    fill(writer, kind, KEPT_MAX - 1)
    refused = writer.append(KINDS[kind](KEPT_MAX), KINDS[kind](KEPT_MAX + 1))
    assert kind in problem(refused, 409, "too_many_items")["detail"]
    writer.seq -= 1  # nothing of it was taken: the number is still the next one
    assert writer.append(KINDS[kind](KEPT_MAX)).status_code == 200
    problem(writer.append(KINDS[kind](KEPT_MAX + 1)), 409, "too_many_items")
    writer.seq -= 1
    assert writer.append(("custom.tick", {})).status_code == 200, "what the state does not keep has no limit"
    began = time.monotonic()
    assert writer.complete(output={"n": 1}).status_code == 200
    assert time.monotonic() - began < 30
    log = [event.envelope() for event in events(web, writer.run_id)]
    assert fold(log, initial(writer.run_id)) == row(web, writer.run_id).state


def test_the_job_that_starts_over_counts_on(web: Stack) -> None:
    named = {"Idempotency-Key": "again-and-again"}
    fill(ExternalWriter.start(web.http, headers=named), "steps", KEPT_MAX)
    again = ExternalWriter.start(web.http, headers=named)
    problem(again.append(KINDS["steps"](0)), 409, "too_many_items")
    again.seq -= 1
    assert again.complete().status_code == 200


@pytest.mark.parametrize("kind", ["text", "previews", "labels"])
def test_a_run_keeps_so_many_bytes_whatever_they_are(web: Stack, kind: str) -> None:
    lines: dict[str, Line] = {
        "text": ("message.delta", {"message_id": "m", "text": "é" * 20_000 + "x" * 360_000}),
        "previews": ("tool.failed", {"tool_call_id": "c", "code": "x", "message": "x" * 400_000, "retryable": False}),
        "labels": ("step.progress", {"step_id": "s", "fraction": 0.5, "label": "x" * 400_000}),
    }
    writer = ExternalWriter.start(web.http)
    taken = 0
    while (answer := writer.append(lines[kind], lines[kind])).status_code == 200:
        taken += 1
        assert taken <= KEPT_BYTES_MAX // 800_000
    assert "bytes" in problem(answer, 409, "too_many_items")["detail"]
    assert taken >= KEPT_BYTES_MAX // 801_000
    writer.seq -= 1
    assert writer.complete().status_code == 200


def test_a_run_keeps_so_many_lists_and_objects_at_whatever_depth(web: Stack) -> None:
    """Two bytes of JSON each: half a million of them made a web process stand still."""
    deep: list[Any] = []
    for _ in range(40):
        deep = [deep]
    error = {"code": "c", "message": "m", "flat": [{}] * 5_000, "deep": [deep] * 100}
    each = sum((1, 1, 5_000, 1, 100 * 41))
    line: Line = ("step.failed", {"step_id": "s", "error": error})
    assert kept_of([line])[CONTAINERS] == each
    writer = ExternalWriter.start(web.http)
    taken = 0
    while (answer := writer.append(line)).status_code == 200:
        taken += each
    assert CONTAINERS in problem(answer, 409, "too_many_items")["detail"]
    assert KEPT_CONTAINERS_MAX - each < taken <= KEPT_CONTAINERS_MAX
    writer.seq -= 1
    assert writer.complete().status_code == 200


def test_what_only_takes_the_place_of_something_has_no_limit() -> None:
    small: list[tuple[str, dict[str, Any]]] = [
        ("step.progress", {"step_id": "s", "fraction": 0.5, "label": "half"}),
        ("context.usage", {"input_tokens": 1}),
        ("plan.created", {"steps": [{"id": "a", "title": "Read"}]}),
        ("plan.updated", {"steps": [{"id": str(n), "title": "Read"} for n in range(20)]}),
        ("custom.note", {"text": "x" * 10_000}),
    ]
    assert sum(kept_of(small * 10).values()) == 0


@pytest.mark.parametrize(("text", "bytes"), [("abc", 3), ("é", 2), ("\n", 2), ('"', 2), ("\x01", 6), ("🚚", 4)])
def test_of_a_text_counts_what_its_json_has(text: str, bytes: int) -> None:
    assert kept_of([("message.delta", {"message_id": "m", "text": text * 1_000})])[BYTES] == 1_000 * bytes


@pytest.mark.parametrize("type", ["plan.created", "plan.updated"])
def test_of_a_long_plan_counts_what_is_longer_than_is_free(type: str) -> None:
    payload = {"steps": [{"id": "a", "title": "x" * 5_000}]}
    assert kept_of([(type, payload)])[BYTES] == len(dumps(payload)) - REPLACED_FREE_BYTES


# Long answers.


@pytest.mark.parametrize("chars", [300_000, 2_500_000])
@pytest.mark.parametrize("named", [True, False])
def test_a_long_answer_is_said_once_and_read_in_full(web: Stack, chars: int, named: bool) -> None:
    writer = ExternalWriter.start(web.http)
    text = ("some words of it é\n" * chars)[:chars]
    writer.append(("message.started", {"message_id": "m", "role": "assistant"}))
    for start in range(0, chars, 200_000):
        assert writer.append(("message.delta", {"message_id": "m", "text": text[start : start + 200_000]})).is_success
    answer = writer.complete(output=None, output_is="answer") if named else writer.complete()
    assert answer.status_code == 200, answer.text
    expected = text if named else {"text": text, "sources": [], "checks": []}
    assert web.http.get(f"/runs/{writer.run_id}").json()["output"] == expected
    end = events(web, writer.run_id)[-1]
    assert len(end.text) < 1_000
    assert end.envelope()["payload"]["output_is"] == ("answer" if named else "streamed")
    log = [event.envelope() for event in events(web, writer.run_id)]
    stored = row(web, writer.run_id)
    assert verify(writer.run_id, log, Claim(stored.status, stored.digest, stored.state))[0] == len(log)


@pytest.mark.parametrize("body", [{"output_is": "streamed"}, {"output": "x", "output_is": "answer"}, {"output_is": 1}])
def test_an_output_is_named_alone_or_not_at_all(web: Stack, body: dict[str, Any]) -> None:
    writer = ExternalWriter.start(web.http)
    problem(writer.complete(**body), 422, "invalid_request")
    assert writer.complete().status_code == 200


@pytest.mark.parametrize("item", ["x" * 100, "\u2028" * 100, {"a": "x" * 100}])
def test_an_output_that_could_never_be_written_is_refused_where_it_is_given(web: Stack, item: Any) -> None:
    """U+2028 is twice as large where it is sent."""
    each = len(dumps(item).replace("\u2028", "\\u2028").encode()) + 1
    writer = ExternalWriter.start(web.http)
    problem(writer.complete(output=[item] * (OUTPUT_BYTES // each + 1)), 422, "invalid_request")
    output = [item] * (OUTPUT_BYTES // each - 10)
    answer = writer.complete(output=output)
    assert (answer.status_code, answer.json()["status"], answer.json()["output"] == output) == (200, "completed", True)


# Ends that fail.


@contextmanager
def broken_state(url: str, run_id: str) -> Iterator[None]:
    """Nobody can fold the run meanwhile."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("SELECT state::text FROM runs WHERE id = %s", (run_id,))
        (kept,) = cursor.fetchone()
        cursor.execute("UPDATE runs SET state = '{}' WHERE id = %s", (run_id,))
        yield
        cursor.execute("UPDATE runs SET state = %s WHERE id = %s", (kept, run_id))


def _tries(services: Services, run_id: str) -> int:
    return next((beat.tries for beat in services.external.beats() if beat.run_id == run_id), 0)


def test_an_end_that_fails_is_tried_ever_more_rarely_by_one_janitor_at_a_time(
    apart: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1_000.0]
    monkeypatch.setattr("workers.janitor.lost_writers.time", SimpleNamespace(monotonic=lambda: clock[0]))
    run = External(apart).start(DEV, StartRequest("external", {}, "session", "continue", None, {}, None, None)).run
    janitors = [LostWriters(apart) for _ in range(3)]
    tried: list[float] = []
    with broken_state(apart.config.database_url, run.id):
        for _ in range(400):
            clock[0] += 1
            for janitor in janitors:
                before = _tries(apart, run.id)
                janitor.end()
                tried += [clock[0]] * (_tries(apart, run.id) - before)
    pauses = [later - earlier for earlier, later in pairwise(tried)]
    assert len(tried) == len(set(tried)), "two janitors at the same moment"
    assert 4 <= len(tried) <= 8
    assert all(later >= 1.5 * earlier for earlier, later in pairwise(pauses)), pauses
    for _ in range(1_300):
        clock[0] += 1
        janitors[0].end()
    found = apart.store.get(run.id)
    assert found is not None
    assert found.status == "failed"
    assert found.error["code"] == "writer_lost"


def test_a_writer_that_repeats_a_finish_that_fails_is_told_to_wait(web: Stack) -> None:
    writer = ExternalWriter.start(web.http)
    with broken_state(web.env["DATABASE_URL"], writer.run_id):
        codes = [writer.complete().status_code for _ in range(6)]
    assert codes == [500, 500, 500, 503, 503, 503]
    problem(writer.complete(), 503, "store_unavailable")
    eventually(lambda: writer.complete().status_code == 200, 2 * ending_seconds(3))
    ended(web, writer.run_id)
