"""External runs on a live server, in orders of calls, deaths and losses that hypothesis chooses, against a reference.

RUNTAIL_MODEL_EXAMPLES says how many orders are tried, RUNTAIL_MODEL_SEED which (a number; else the same ones always).
"""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from redis import Redis

from app.errors import RuntailError
from app.protocol.digest import digest
from app.protocol.events import TERMINAL
from app.protocol.reducer import fold, initial
from app.storage.event_log import meta_key, stream_key
from app.storage.run_store import Batch, RunRecord, WriterBeat
from app.verbs.external_ends import Ends
from app.verbs.external_payloads import outbound_of
from tests.conftest import StackMaker
from tests.external_reference import OK, Answer, Reference, Wanted, entry
from tests.external_writer import ExternalWriter, Line, ndjson
from tests.harness import Stack
from workers.janitor.lost_writers import LostWriters

EXAMPLES = int(os.environ.get("RUNTAIL_MODEL_EXAMPLES", "30"))
SEED = os.environ.get("RUNTAIL_MODEL_SEED")
STEPS, STEPS_SINCE_END = 40, 6
"""Of one order; what would follow is left out."""
INPUTS_KNOWN = st.integers(0, 2)
LATE = {"expires_at": "2020-01-01T00:00:00Z"}
ASKS = {"a": {"label": "Refund 10"}, "b": {"label": "Refund 20"}, "c": {"label": "Refund 30", **LATE}}
KINDS = st.lists(st.sampled_from(["tick", "tick", "a", "b", "c"]), min_size=1, max_size=3)
LOST: Wanted = {"status": "failed", "error": {"code": "writer_lost", "message": "…"}}
CANCELLED: Wanted = {"status": "cancelled"}
ENDS: Sequence[Wanted] = (
    {"status": "completed", "output": None},
    {"status": "completed", "output": "done"},
    {"status": "failed", "error": {"code": "no_stock", "message": "None left."}},
    CANCELLED,
)
BAD: dict[str, tuple[bytes, Answer]] = {
    "reserved": (ndjson([("run.completed", {})]), (422, "reserved_type")),
    "unknown": (ndjson([("tick", {})]), (422, "invalid_event")),
    "not JSON": (b'{"type": "custom.tick"', (400, "invalid_json")),
    "empty": (b"\n", (422, "invalid_request")),
}

CALLS = {
    "append": 12,
    "heartbeat": 4,
    "finish": 1,
    "finish_and_die": 1,
    "start_again": 3,
    "start_otherwise": 1,
    "append_what_does_not_fit": 1,
    "call_under_another_epoch": 1,
    "cancel": 1,
    "send_input": 4,
    "decide": 5,
    "expire": 1,
    "a_janitor_looks": 3,
    "a_janitor_calls_it_lost": 1,
    "take_an_image": 1,
    "redis_is_back_with_less": 2,
}
"""Each so often as it says. They are one rule: hypothesis would leave out half of the rules in each order."""

WRITERS = ("append", "heartbeat", "finish", "finish_and_die", "append_what_does_not_fit", "call_under_another_epoch")

Draw = Callable[[st.SearchStrategy[Any]], Any]

tried: Counter[str] = Counter()
"""What was answered to each call, to be printed."""
names = itertools.count()


class OneRun(RuleBasedStateMachine):
    """One run and all who are at it; each step is followed by a look at what is stored."""

    def __init__(self, web: Stack, redis: Redis) -> None:
        super().__init__()
        self.web, self.services, self.redis = web, web.services, redis
        self.body = {"agent": "external", "client_run_id": f"machine-{next(names)}"}
        self.writers: list[ExternalWriter] = []
        self.ticks = itertools.count(1)
        self.looked: tuple[WriterBeat, tuple[int, int]] | None = None
        self.image: list[bytes | None] = [None, None]
        self.since_end = 0

    @initialize(later=st.booleans())
    def begin(self, later: bool) -> None:
        tried["orders"] += 1
        answer = self.post(later)
        self.run_id = answer["run_id"]
        self.keys = stream_key(self.run_id), meta_key(self.run_id)
        self.known = Reference(unclaimed=later)
        self.started(answer, writes=not later, later=later)
        self.look(level=True)

    @rule(call=st.sampled_from([call for call, often in CALLS.items() for _ in range(often)]), data=st.data())
    def step(self, call: str, data: st.DataObject) -> None:
        self.since_end += self.known.over
        if self.since_end > STEPS_SINCE_END:
            return
        if not self.writers and call in WRITERS:
            call = "start_again"
        getattr(self, call)(data.draw)

    # Writers.

    def post(self, later: bool, **more: Any) -> dict[str, Any]:
        headers = {"Runtail-Writer": "later"} if later else {}
        answer = self.web.http.post("/runs", json={**self.body, **more}, headers=headers)
        assert answer.status_code == 202, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def started(self, answer: dict[str, Any], *, writes: bool, later: bool) -> None:
        assert (answer["writer_token"] is not None) == writes
        assert answer["epoch"] == (self.known.epoch if writes else None)
        assert (answer["watch_token"] is None) == (self.known.over and not later)
        if writes:
            self.writers.append(ExternalWriter(self.web.http, answer))

    def start_again(self, draw: Draw) -> None:
        later = draw(st.sampled_from([False, False, False, True]))
        answer = self.post(later)
        writes = not later and self.known.claim()
        self.note("start", "writes" if writes else "over" if self.known.over else "later")
        assert answer["run_id"] == self.run_id
        assert answer["status"] == self.known.status
        self.started(answer, writes=writes, later=later)
        self.look(level=writes)

    def start_otherwise(self, draw: Draw) -> None:
        answer = self.web.http.post("/runs", json={**self.body, "input": {"other": 1}})
        self.expect("start otherwise", answer, (409, "idempotency_conflict"))

    def append(self, draw: Draw) -> None:
        writer, seq, known = self.writer(draw), self.number(draw), draw(INPUTS_KNOWN)
        lines, dies = self.lines(draw(KINDS)), draw(st.sampled_from([False, False, False, True]))
        before = len(self.known.log)
        expected = self.known.take(writer.epoch, seq, lines, dies=dies)
        if dies:
            self.append_and_die(writer.epoch, seq, lines, expected)
            return
        answer = writer.send(ndjson(lines), seq=seq, inputs_after=known)
        self.expect("append", answer, expected)
        if expected == OK:
            self.told(answer, known)
        if expected == (409, "producer_gap"):
            assert answer.json()["expected"] == self.known.number + 1
        self.look(level=len(self.known.log) > before)

    def append_what_does_not_fit(self, draw: Draw) -> None:
        """One bad line, behind a good one."""
        bad = draw(st.sampled_from(sorted(BAD)))
        body, expected = BAD[bad]
        good = b"" if bad == "empty" else ndjson([("custom.tick", {"n": 0})])
        self.expect("append badly", self.writer(draw).send(good + body, seq=self.known.number + 1), expected)
        self.look()

    def call_under_another_epoch(self, draw: Draw) -> None:
        writer = self.writer(draw)
        epoch = {"Producer-Epoch": str(writer.epoch + draw(st.sampled_from([1, 2])))}
        headers = {**writer.headers(1), "Content-Type": "application/json", **epoch}
        answers = {
            "append": lambda: writer.send(ndjson([("custom.tick", {"n": 0})]), seq=1, **epoch),
            "beat": lambda: writer.beat(**epoch),
            "finish": lambda: writer.http.post(f"/runs/{self.run_id}/finish", json=ENDS[0], headers=headers),
        }
        self.expect("another epoch", answers[draw(st.sampled_from(sorted(answers)))](), (403, "stale_epoch"))
        self.look()

    def heartbeat(self, draw: Draw) -> None:
        writer, known = self.writer(draw), draw(INPUTS_KNOWN)
        expected = self.known.take(writer.epoch, None, ())
        answer = writer.beat(inputs_after=known, **{"Producer-Seq": "1"})
        self.expect("heartbeat", answer, expected)
        if expected == OK:
            self.told(answer, known)
        self.look(level=expected == OK)

    def finish(self, draw: Draw) -> None:
        writer, seq, wanted = self.writer(draw), self.number(draw), self.wish(draw)
        was_over = self.known.over
        expected = self.known.finish(writer.epoch, seq, wanted)
        answer = writer.finish(wanted, seq=seq)
        self.expect("finish", answer, expected)
        if expected == OK:
            assert answer.json()["status"] == wanted["status"]
        self.look(level=expected == OK and not was_over)

    # What a web process leaves that dies.

    def append_and_die(self, epoch: int, seq: int, lines: Sequence[Line], expected: Answer) -> None:
        """A batch is committed, and not appended."""
        sent = [{"type": type, "payload": payload} for type, payload in lines]
        batch = Batch(self.run_id, epoch, seq, *outbound_of(sent, self.services.hooks), 0)
        (taken,) = self.services.batches.take([batch])
        self.note("append, and die", expected[1] or str(expected[0]))
        assert (taken.code if isinstance(taken, RuntailError) else "") == expected[1]
        self.look()

    def finish_and_die(self, draw: Draw) -> None:
        """It is taken over, and not ended."""
        writer, seq, wanted = self.writer(draw), self.number(draw), self.wish(draw)
        if self.known.over or self.known.may_end(writer.epoch, seq, wanted) is not None:
            return
        self.note("finish", "and die")
        self.known.take_over(wanted)
        self.services.external.begin_end(self.run_id, writer.epoch, seq, wanted)
        self.look()

    # Users.

    def cancel(self, draw: Draw) -> None:
        if not self.known.over:
            self.known.cancel()
        answer = self.web.http.post(f"/runs/{self.run_id}/cancel")
        self.note("cancel", str(answer.status_code))
        assert answer.status_code == (200 if self.known.over else 202), answer.text
        self.look()

    def send_input(self, draw: Draw) -> None:
        answer = self.web.http.post(f"/runs/{self.run_id}/input", json={"text": "Grey"})
        self.expect("input", answer, self.known.add_input())
        self.look()

    def decide(self, draw: Draw) -> None:
        id, decision = draw(st.sampled_from(sorted(ASKS))), draw(st.sampled_from(["approved", "denied"]))
        answer = self.web.http.post(f"/runs/{self.run_id}/approvals/{id}", json={"decision": decision})
        self.expect("decide", answer, self.known.decide(id, decision))
        self.look()

    # The janitor, and Redis.

    def expire(self, draw: Draw) -> None:
        self.services.waits.expire_due(100)
        self.known.expire()
        self.look()

    def a_janitor_looks(self, draw: Draw) -> None:
        if self.known.over:
            return
        beat = self.beat()
        assert (beat.epoch, beat.beats, beat.ending, beat.cancel_requested) == (
            *(self.known.epoch, self.known.beats, self.known.ending is not None, self.known.cancelled),
        )
        self.looked = beat, (beat.epoch, beat.beats)

    def a_janitor_calls_it_lost(self, draw: Draw) -> None:
        """What it has seen may be over by now."""
        if self.looked is None:
            return
        (beat, seen), self.looked = self.looked, None
        ignore_heartbeat, dies = draw(st.booleans()) and beat.cancel_requested, draw(st.booleans())
        mine = not self.known.over and seen[0] == self.known.epoch and (ignore_heartbeat or seen[1] == self.known.beats)
        wanted = CANCELLED if beat.cancel_requested else LOST
        self.note("janitor", "takes it" if mine else "is too late")
        if dies:
            assert (
                self.services.external.take_lost(beat, wanted, ignore_heartbeat=ignore_heartbeat) is not None
            ) == mine
            if mine:
                self.known.take_over(self.known.ending or wanted)
        else:
            assert Ends(self.services).end_lost(beat, ignore_heartbeat=ignore_heartbeat) == mine
            if mine:
                self.known.end(self.known.ending or wanted)
        self.look()

    def take_an_image(self, draw: Draw) -> None:
        self.image = [self.redis.dump(key) for key in self.keys]

    def redis_is_back_with_less(self, draw: Draw) -> None:
        all = draw(st.booleans())
        self.note("Redis", "less")
        self.redis.delete(*self.keys)
        for key, dump in zip(self.keys, self.image, strict=True):
            if dump is not None and not all:
                self.redis.restore(key, 0, dump)
        self.look()

    # The end.

    def teardown(self) -> None:
        """A janitor for whom everybody is lost at once ends what has not ended."""
        if not hasattr(self, "run_id"):
            return
        if not self.known.over:
            self.known.end(self.known.ending or (CANCELLED if self.known.cancelled else LOST))
            with self.services.database.session() as db:  # each writer has been given a lease of its own
                db.execute_sql("UPDATE writers SET lease_seconds = NULL WHERE run_id = %s", (self.run_id,))
            config = replace(self.services.config, external_lease_seconds=0, external_claim_seconds=0)
            LostWriters(replace(self.services, config=config)).end()
        self.services.ownership.publish(self.run_id, self.row().epoch)
        self.look(level=True)
        self.inspect_end(self.row())
        assert self.web.http.post(f"/runs/{self.run_id}/erase").status_code == 204
        assert not self.redis.exists(*self.keys)
        for writer in self.writers:
            self.expect(
                "append after all", writer.send(ndjson([("custom.tick", {"n": 0})]), seq=1), (404, "run_not_found")
            )

    def inspect_end(self, row: RunRecord) -> None:
        events = self.services.store.events(self.run_id, 0, 1_000)
        assert [e.type for e in events if e.type in TERMINAL] == [events[-1].type] == [f"run.{row.status}"]
        before = fold((event.envelope() for event in events[:-1]), initial(self.run_id))
        assert digest(before, row.output) == row.digest == events[-1].envelope()["payload"]["digest"]
        assert fold((event.envelope() for event in events), initial(self.run_id)) == row.state
        assert row.state_seq == len(events)
        assert self.known.ending is not None
        assert (row.error or {}).get("code") == self.known.ending.get("error", {}).get("code")

    # What they share.

    def writer(self, draw: Draw) -> ExternalWriter:
        """Mostly the latest."""
        return self.writers[max(draw(st.sampled_from([-1] * 5 + [-2])), -len(self.writers))]

    def number(self, draw: Draw) -> int:
        """Mostly the next one; else the last one again, or one that leaves a gap."""
        return max(1, self.known.number + draw(st.sampled_from([1] * 6 + [0, 0, 2])))

    def wish(self, draw: Draw) -> Wanted:
        return draw(st.sampled_from(ENDS))

    def lines(self, kinds: list[str]) -> list[Line]:
        def line(kind: str) -> Line:
            if kind == "tick":
                return "custom.tick", {"n": next(self.ticks)}
            # Now and then somebody asks for something else under an id that is there.
            other = {"label": "Another"} if kind in self.known.approvals and next(self.ticks) % 5 == 0 else {}
            return "approval.required", {"approval_id": kind, "requires": "owner", **ASKS[kind], **other}

        return [line(kind) for kind in kinds]

    def beat(self) -> WriterBeat:
        return next(beat for beat in self.services.external.beats() if beat.run_id == self.run_id)

    def row(self) -> RunRecord:
        row = self.services.store.get(self.run_id)
        assert row is not None
        return row

    def told(self, answer: httpx.Response, known: int) -> None:
        body = answer.json()
        body["inputs"] = [input["input_id"] for input in body["inputs"]]
        body["decisions"] = {d["approval_id"]: (d["decision"], d["by"]) for d in body["decisions"]}
        assert body == self.known.answer(known)

    def expect(self, call: str, answer: httpx.Response, expected: Answer) -> None:
        code = answer.json()["code"] if answer.status_code >= 400 else ""
        self.note(call, code or str(answer.status_code))
        assert (answer.status_code, code) == expected, answer.text

    def note(self, call: str, what: str) -> None:
        tried[f"{call}: {what}"] += 1

    def look(self, *, level: bool = False) -> None:
        """At the row and both logs. `level`: Redis has to have everything."""
        row, known = self.row(), self.known
        assert (row.status, row.epoch, row.attempt, row.cancel_requested) == (
            *(known.status, known.epoch, known.attempt, known.cancelled),
        )
        archived = self.services.store.events(self.run_id, 0, 1_000)
        assert [event.seq for event in archived] == list(range(1, len(archived) + 1))
        assert [entry(event) for event in archived] == known.log
        live = self.services.log.read(self.run_id, 0, 1_000)
        assert live == archived[: len(live)]
        assert not level or live == archived


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """Two web processes, no worker."""
    stack = module_stack(WEB_CONCURRENCY="2")
    stack.start_web()
    return stack


@pytest.mark.timeout(3_600)
def test_no_order_of_calls_on_a_live_server_breaks_an_external_run(web: Stack) -> None:
    with Redis.from_url(web.services.config.events_redis_url) as redis:

        def one_run() -> OneRun:
            return OneRun(web, redis)

        if SEED is not None:
            seed(int(SEED))(one_run)
        run_state_machine_as_test(
            one_run,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=SEED is None,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )
    print(f"\n{tried.pop('orders')} orders, {sum(tried.values())} calls: {dict(tried.most_common())}")
