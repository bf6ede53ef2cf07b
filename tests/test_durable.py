"""An agent that runs again from the top does nothing twice: at every point at which its run may be taken away.

The run is taken away as a janitor takes it from a lost worker; the worker that gets it next is the same one here, which
then finds itself executing it twice. Nothing else is different, and no lease has to pass.
"""

import secrets
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.protocol.digest import digest
from app.protocol.reducer import fold, initial
from app.storage.run_store import RunRecord
from tests.conftest import StackMaker
from tests.harness import Stack, eventually

POINTS = (
    *("start", "planned", "in_step", "after_tool", "in_tool", "failed", "evidence", "drawn", "in_message"),
    *("after_message", "in_left", "in_right", "joined", "in_stream", "end"),
)
EFFECTS = ["one", "keyed", "inner", "failing", "failing", "right", "left", "streamed", "broken"]


class Play:
    """One run of one of the durable agents."""

    def __init__(self, stack: Stack, agent: str, hold: str | None = None, **input: Any) -> None:
        self.stack = stack
        self.gate = stack.folder / secrets.token_hex(6)
        if hold is None:
            self.gate.touch()
        self.run_id = stack.start(agent, {"gate": str(self.gate), "hold": hold, **input})

    def reached(self) -> None:
        """Wait until the agent is held."""
        self._reached(1)

    def take_away(self) -> None:
        """As when its worker is lost: the run is pending again, and another invocation begins."""
        row = self.row
        assert self.stack.services.store.release(self.run_id, row.epoch, "worker_lost")
        self.stack.services.queue.enqueue(self.run_id, row.epoch, row.queue)
        eventually(lambda: self.row.epoch > row.epoch, what=f"the next owner of {self.run_id}")

    def hand_over(self) -> None:
        """Take it away where the agent is held; let it go on once only the next invocation is held there."""
        self.take_away()
        self._reached(2)
        self.gate.touch()

    def effects(self) -> list[str]:
        """The names of what its tools did, in order."""
        return [line.split()[0] for line in self._lines("effects")]

    def keys(self, name: str) -> set[str]:
        """What its tool of that name was told of itself."""
        return {line.removeprefix(f"{name} ") for line in self._lines("effects") if line.startswith(f"{name} ")}

    @property
    def row(self) -> RunRecord:
        run = self.stack.services.store.get(self.run_id)
        assert run is not None
        return run

    def waits(self) -> None:
        """Wait until it waits."""
        eventually(lambda: self.row.status == "waiting", 30, f"the wait of {self.run_id}: {self.row.error}")

    def decide(self, decision: str, approval_id: str = "", **body: Any) -> None:
        """Decide its approval, by default the first one."""
        approval_id = approval_id or self.row.state["approvals"][0]["id"]
        url = f"/runs/{self.run_id}/approvals/{approval_id}"
        answer = self.stack.http.post(url, json={"decision": decision, **body})
        assert answer.status_code == 200, answer.text

    def ended(self, status: str = "completed") -> dict[str, Any]:
        """The run once it has ended so, its log checked."""
        run = self.stack.ended(self.run_id, 40)
        assert run["status"] == status, (self.run_id, run["error"])
        events = self.stack.events(self.run_id)
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        before = fold(events[:-1], initial(self.run_id))
        assert digest(before, run["output"]) == run["digest"] == events[-1]["payload"]["digest"]
        return run

    def said(self) -> Counter[tuple[str, str]]:
        """How many events of each (op, type) the agent left; messages apart, of which one may be begun anew."""
        events = self.stack.services.store.events(self.run_id, 0, 10_000)
        return Counter((e.op, e.type) for e in events if e.op and not e.type.startswith("message."))

    def types(self) -> list[str]:
        return [event["type"] for event in self.stack.events(self.run_id)]

    def _reached(self, times: int) -> None:
        what = f"point {times} of {self.run_id}"
        eventually(lambda: len(self._lines("reached")) >= times, 30, what)

    def _lines(self, where: str) -> list[str]:
        file = Path(f"{self.gate}.{where}")
        return file.read_text().splitlines() if file.exists() else []


Player = Callable[..., Play]


@pytest.fixture(scope="module")
def played(module_stack: StackMaker) -> Stack:
    stack = module_stack()
    stack.start_web()
    stack.start_worker()
    return stack


@pytest.fixture(scope="module")
def undisturbed(played: Stack) -> Play:
    play = Play(played, "everything")
    play.ended()
    return play


@pytest.fixture(scope="module")
def disturbed(played: Stack) -> dict[str, Play]:
    """The same run, taken away once at each of POINTS."""
    plays = {point: Play(played, "everything", hold=point) for point in POINTS}
    for play in plays.values():
        play.reached()
    for play in plays.values():
        play.hand_over()
    return plays


class TestTakenAway:
    """At each point of an agent that makes every call."""

    @pytest.mark.parametrize("point", POINTS)
    def test_no_event_is_emitted_twice_and_none_is_missing(
        self, disturbed: dict[str, Play], undisturbed: Play, point: str
    ) -> None:
        play = disturbed[point]
        play.ended()
        assert play.said() == undisturbed.said()
        assert play.types().count("run.step") == 1

    @pytest.mark.parametrize("point", POINTS)
    def test_no_recorded_tool_is_called_again(self, disturbed: dict[str, Play], point: str) -> None:
        play = disturbed[point]
        play.ended()
        again = {"in_tool": ["keyed"], "in_stream": ["streamed"]}.get(point, [])
        assert Counter(play.effects()) == Counter(EFFECTS + again)

    @pytest.mark.parametrize("point", POINTS)
    def test_the_run_comes_out_as_if_nothing_had_happened(
        self, disturbed: dict[str, Play], undisturbed: Play, point: str
    ) -> None:
        run, other = disturbed[point].ended(), undisturbed.ended()
        assert (run["output"]["branches"], run["output"]["text"]) == (
            other["output"]["branches"],
            other["output"]["text"],
        )
        for members in ("plan", "checks", "usage"):
            assert run["state"][members] == other["state"][members], members
        assert {s["title"] for s in run["state"]["sources"]} == {"A book", "left", "right"}
        assert [(s["title"], s["status"]) for s in run["state"]["steps"]] == [("First", "completed")]
        calls, others = (
            # Sorted: of two branches either may call its tool first.
            sorted((c["id"], c["name"], c["status"]) for c in each["state"]["tool_calls"])
            for each in (run, other)
        )
        assert calls == others
        kept = [(m["role"], m["text"]) for m in run["state"]["messages"] if m["status"] != "abandoned"]
        assert kept == [(m["role"], m["text"]) for m in other["state"]["messages"]]

    @pytest.mark.parametrize(("point", "role"), [("in_message", "system"), ("in_stream", "assistant")])
    def test_a_message_that_was_open_is_abandoned_and_written_under_another_id(
        self, disturbed: dict[str, Play], point: str, role: str
    ) -> None:
        messages = [m for m in disturbed[point].ended()["state"]["messages"] if m["role"] == role]
        assert [m["status"] for m in messages][:2] == ["abandoned", "completed"]
        assert messages[0]["id"] != messages[1]["id"]

    def test_a_tool_that_was_under_way_gets_the_same_id_and_key(self, disturbed: dict[str, Play]) -> None:
        play = disturbed["in_tool"]
        play.ended()
        assert play.effects().count("keyed") == 2
        (told,) = play.keys("keyed")
        assert told.endswith(f" {play.run_id}:{told.split()[0].removeprefix('call_')}")

    def test_a_retry_shares_the_key_of_the_call_that_failed(self, undisturbed: Play) -> None:
        assert len(undisturbed.keys("failing")) == 1
        failed = [e["payload"] for e in undisturbed.stack.events(undisturbed.run_id) if e["type"] == "tool.failed"]
        assert len({payload["tool_call_id"] for payload in failed}) == 2


def test_a_run_that_is_taken_away_many_times_is_done_once(played: Stack, undisturbed: Play) -> None:
    play = Play(played, "everything", hold="end")
    for _ in range(5):
        eventually(lambda: play.row.status == "running")
        play.take_away()
    play.reached()
    play.gate.touch()
    run = play.ended()
    assert play.said() == undisturbed.said()
    assert Counter(play.effects()) - Counter(EFFECTS) <= Counter(["keyed", "streamed"] * 5 + EFFECTS * 5)
    assert run["attempt"] == 1


def test_what_is_random_or_passes_stays_as_it_was_first_drawn(disturbed: dict[str, Play]) -> None:
    play = disturbed["end"]
    run = play.ended()
    ops = {op.kind: op.result for op in play.stack.services.journal.recorded(play.run_id).ops}
    assert run["output"]["number"] == ops["random"]
    assert run["output"]["began"].startswith("20")


class TestApprovals:
    def test_an_approved_run_goes_on_where_it_asked(self, played: Stack) -> None:
        play = Play(played, "asks")
        play.waits()
        assert play.row.owner is None, "nobody holds it"
        assert play.effects() == ["before"]
        play.decide("approved", comment="Fine.")
        run = play.ended()
        assert run["output"] == {"answers": ["approved", "dev", "Fine."]}
        assert play.effects() == ["before", "after"]
        assert run["attempt"] == 1
        (approval,) = run["state"]["approvals"]
        assert (approval["status"], approval["by"], approval["comment"]) == ("approved", "dev", "Fine.")
        types = play.types()
        asked = types.index("approval.required")
        assert types[asked : asked + 3] == ["approval.required", "run.waiting", "run.resumed"]
        assert types.count("approval.resolved") == 1

    def test_a_message_that_was_open_when_the_run_suspended_is_written_anew(self, played: Stack) -> None:
        play = Play(played, "asks")
        play.waits()
        play.decide("approved")
        messages = play.ended()["state"]["messages"]
        assert [(m["status"], m["text"]) for m in messages] == [
            ("abandoned", "I ask. "),
            ("completed", "I ask. They answered."),
        ]

    def test_a_denied_run_learns_it(self, played: Stack) -> None:
        play = Play(played, "asks")
        play.waits()
        play.decide("denied", comment="No.")
        assert play.ended()["output"] == {"answers": ["denied", "dev", "No."]}

    def test_an_approval_that_nobody_decides_expires(self, played: Stack) -> None:
        play = Play(played, "asks", expires_in=0.5)
        assert play.ended()["output"] == {"answers": ["expired", None, None]}

    def test_two_branches_wait_side_by_side(self, played: Stack) -> None:
        play = Play(played, "asks", both=True)
        play.waits()
        first, second = (a["id"] for a in play.row.state["approvals"])
        waiting = [e["payload"] for e in played.events(play.run_id) if e["type"] == "run.waiting"]
        assert waiting == [{"on": "approval", "ids": [first, second]}]
        play.decide("denied", second)
        eventually(lambda: play.types().count("run.waiting") == 2, what="the wait for the other one")
        play.waits()
        play.decide("approved", first)
        assert play.ended()["output"] == {"answers": ["approved", "denied"]}
        assert Counter(play.types())["approval.required"] == 2
        assert Counter(play.types())["approval.resolved"] == 2

    def test_a_decision_before_the_run_has_suspended_is_not_lost(self, played: Stack) -> None:
        """Many at once, so that some decisions come between the commit of the question and the suspension."""
        plays = [Play(played, "asks") for _ in range(20)]
        for play in plays:
            approval_id = "apr_4"
            url = f"/runs/{play.run_id}/approvals/{approval_id}"
            eventually(lambda url=url: played.http.post(url, json={"decision": "approved"}).status_code == 200)
        assert {play.ended()["output"]["answers"][0] for play in plays} == {"approved"}
        assert all(play.effects() == ["before", "after"] for play in plays)

    @pytest.mark.parametrize("hold", ["before", "after"])
    def test_a_run_that_is_lost_around_its_approval_asks_once(self, played: Stack, hold: str) -> None:
        play = Play(played, "asks", hold=hold)
        if hold == "after":
            play.waits()
            play.decide("approved")
        play.reached()
        play.hand_over()
        if hold == "before":
            play.waits()
            play.decide("approved")
        run = play.ended()
        assert play.effects() == ["before", "after"]
        counts = Counter(play.types())
        assert (counts["approval.required"], counts["approval.resolved"]) == (1, 1)
        assert run["output"]["answers"][0] == "approved"

    def test_a_run_that_is_cancelled_while_it_waits_closes_its_approval(self, played: Stack) -> None:
        play = Play(played, "asks")
        play.waits()
        assert played.http.post(f"/runs/{play.run_id}/cancel").status_code == 200
        run = play.ended("cancelled")
        assert [a["status"] for a in run["state"]["approvals"]] == ["expired"]
        found = played.services.journal.recorded(play.run_id).approvals
        assert [approval.decision for approval in found] == ["expired"]
        assert play.effects() == ["before"]

    @pytest.mark.parametrize("call", [True, False])
    def test_an_agent_that_swallows_its_suspension_waits_all_the_same(self, played: Stack, call: bool) -> None:
        play = Play(played, "swallows", call=call)
        play.waits()
        assert "custom.went_on" not in play.types()
        play.decide("approved")
        assert play.ended()["output"] == {"went": "on"}


class TestTime:
    def test_a_long_sleep_costs_nothing_and_ends(self, played: Stack) -> None:
        play = Play(played, "sleeps_long", seconds=3_600)
        play.waits()
        row = play.row
        assert row.owner is None
        assert row.wake_at is not None
        with played.services.database.session() as db:
            db.execute_sql("UPDATE runs SET wake_at = now() WHERE id = %s", (play.run_id,))
            db.execute_sql(
                "UPDATE run_ops SET result = to_json(extract(epoch FROM now())) WHERE run_id = %s AND kind = 'sleep'",
                (play.run_id,),
            )
        run = play.ended()
        assert 0 <= run["output"]["slept"] < 60
        waits = [e["payload"] for e in played.events(play.run_id) if e["type"] == "run.waiting"]
        assert waits == [{"on": "time", "ids": ["2"]}]

    def test_a_sleeper_that_is_woken_early_sleeps_on(self, played: Stack) -> None:
        play = Play(played, "sleeps_long", seconds=3_600)
        play.waits()
        assert played.http.post(f"/runs/{play.run_id}/input", json={"text": "wake up"}).status_code == 202
        eventually(lambda: play.types().count("run.waiting") == 2)
        played.http.post(f"/runs/{play.run_id}/cancel")
        assert play.ended("cancelled")["state"]["inputs"] == [{"id": "inp_1", "text": "wake up"}]


class TestInputs:
    def _send(self, play: Play, text: str) -> None:
        assert play.stack.http.post(f"/runs/{play.run_id}/input", json={"text": text}).status_code == 202

    def test_a_run_waits_for_what_the_user_has_to_say(self, played: Stack) -> None:
        play = Play(played, "chats")
        play.waits()
        self._send(play, "hello")
        eventually(lambda: play.types().count("run.waiting") == 2)
        play.waits()
        for text in ("one", "two", "bye", "too late"):
            self._send(play, text) if not play.row.terminal else None
        run = play.ended()
        assert run["output"]["heard"][:4] == ["hello", "one", "two", "bye"]
        assert [i["id"] for i in run["state"]["inputs"]] == [f"inp_{n + 1}" for n in range(len(run["state"]["inputs"]))]

    def test_inputs_survive_the_loss_of_the_worker(self, played: Stack) -> None:
        play = Play(played, "chats", hold="heard 2")
        play.waits()
        self._send(play, "one")
        eventually(lambda: play.types().count("run.waiting") == 2)
        self._send(play, "two")
        play.reached()
        self._send(play, "three")
        eventually(lambda: play.types().count("input.received") == 3, what="the third input in the log")
        play.take_away()
        self._send(play, "bye")
        play.gate.touch()
        run = play.ended()
        assert [*run["output"]["heard"], *run["output"]["more"]] == ["one", "two", "three", "bye"]
        assert [i["text"] for i in run["state"]["inputs"]] == ["one", "two", "three", "bye"]


class TestNondeterminism:
    @pytest.mark.parametrize(
        ("way", "named"),
        [
            ("other_name", "1"),
            ("other_arguments", "1"),
            ("other_call", "1"),
            ("other_event", "1"),
            ("other_custom", "1"),
            ("other_text", "1"),
            ("fewer", "1"),
        ],
    )
    def test_an_agent_that_does_not_repeat_itself_fails_and_is_told_where(
        self, played: Stack, way: str, named: str
    ) -> None:
        play = Play(played, "fickle", hold="middle", way=way)
        play.reached()
        play.take_away()
        play.gate.touch()
        run = play.ended("failed")
        assert run["error"]["code"] == "nondeterministic_agent"
        assert f" {named}" in run["error"]["message"]


@pytest.fixture(scope="module")
def changed(module_stack: StackMaker) -> dict[str, Play]:
    """Runs that version 1 began and version 2 goes on with."""
    stack = module_stack()
    stack.start_web()
    first = stack.start_worker()
    plays = {agent: Play(stack, agent) for agent in ("resumes", "restarts", "refuses")}
    for play in plays.values():
        play.waits()
    first.stop()
    stack.env["TEST_AGENT_VERSION"] = "2"
    stack.start_worker()
    for play in plays.values():
        play.decide("approved")
    return plays


class TestVersions:
    def test_a_run_that_resumes_goes_on_with_its_records(self, changed: dict[str, Play]) -> None:
        play = changed["resumes"]
        run = play.ended("failed")  # its message has another text now
        assert run["error"]["code"] == "nondeterministic_agent"
        assert play.effects() == ["one"]

    def test_a_run_that_restarts_does_everything_anew(self, changed: dict[str, Play]) -> None:
        play = changed["restarts"]
        eventually(lambda: play.types().count("approval.required") == 2, 30, "the second question")
        play.waits()
        play.decide("approved", play.row.state["approvals"][-1]["id"])
        run = play.ended()
        assert run["output"]["version"] == "2"
        assert play.effects() == ["one", "one"]
        steps = [e["payload"] for e in play.stack.events(play.run_id) if e["type"] == "run.step"]
        assert [step["restart"] for step in steps] == [True]
        assert [m["status"] for m in run["state"]["messages"]] == ["abandoned", "completed"]
        assert play.row.agent_version == "2"

    def test_a_run_that_refuses_fails(self, changed: dict[str, Play]) -> None:
        assert changed["refuses"].ended("failed")["error"]["code"] == "agent_changed"
