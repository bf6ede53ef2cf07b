"""The writer of one run's log, in memory: against a simple model, whatever happens in whatever order."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.protocol.events import Event
from app.protocol.reducer import fold, initial
from app.storage.log_writer import LogWriter


def _writer() -> LogWriter:
    writer = LogWriter("run_1", 1, initial("run_1"), appended=0, archived=0)
    writer.add("run.created", {"agent": "a", "input_preview": None})
    return writer


def _seqs(events: Any) -> list[int]:
    return [event.seq for event in events]


class LogWriterModel(RuleBasedStateMachine):
    """Beside the writer: every event ever added, what Redis holds, what Postgres holds."""

    def __init__(self) -> None:
        super().__init__()
        self.writer = _writer()
        self.all: list[Event] = [*self.writer.appendable()]
        self.redis = 0
        self.postgres = 0
        self.facts: list[int] = []

    @rule(text=st.text(max_size=20), commit_first=st.booleans())
    def add(self, text: str, commit_first: bool) -> None:
        event = self.writer.add("custom.tick", {"text": text}, commit_first=commit_first)
        assert event.seq == len(self.all) + 1
        self.all.append(event)
        if commit_first:
            self.facts.append(event.seq)

    @rule(data=st.data())
    def append_some(self, data: st.DataObject) -> None:
        events = self.writer.appendable()
        taken = data.draw(st.integers(0, len(events)))
        if taken and events[0].seq == self.redis + 1:  # else Redis answers that it is elsewhere, and takes nothing
            self.redis = events[taken - 1].seq
            self.writer.mark_appended(self.redis)

    @rule(data=st.data())
    def append_some_and_lose_the_answer(self, data: st.DataObject) -> None:
        events = self.writer.appendable()
        taken = data.draw(st.integers(0, len(events)))
        if taken:
            self.redis = events[taken - 1].seq

    @rule(data=st.data())
    def archive_some(self, data: st.DataObject) -> None:
        self.postgres = data.draw(st.integers(self.postgres, len(self.all)))
        due = list(self.writer.unarchived())[: self.postgres - self.writer.archived]
        assert due == self.all[self.writer.archived : self.postgres]
        self.writer.mark_archived(self.postgres)

    @precondition(lambda self: self.redis > 0)
    @rule(data=st.data())
    def redis_goes_back(self, data: st.DataObject) -> None:
        self.redis = data.draw(st.integers(0, self.redis))

    @rule()
    def find_out_where_redis_is(self) -> None:
        if not self.writer.remembers(self.redis):
            assert self.postgres > self.redis, "what was forgotten can be had from Postgres"
            self.redis = self.postgres  # Ownership.sync
        assert self.writer.remembers(self.redis)
        self.writer.level(self.redis)
        assert self.writer.appended == self.redis

    @invariant()
    def nothing_that_is_in_one_place_only_is_forgotten(self) -> None:
        assert self.writer.remembers(min(self.writer.appended, self.writer.archived))
        assert _seqs(self.writer.unarchived()) == list(range(self.writer.archived + 1, len(self.all) + 1))

    @invariant()
    def facts_and_what_follows_them_wait_for_their_commit(self) -> None:
        uncommitted = [seq for seq in self.facts if seq > self.writer.archived]
        end = uncommitted[0] - 1 if uncommitted else len(self.all)
        assert _seqs(self.writer.appendable()) == list(range(self.writer.appended + 1, end + 1))

    @invariant()
    def the_bytes_that_count_are_those_that_are_not_in_both_places(self) -> None:
        left = sum(len(event.text) for event in self.all[self.writer.appended :])
        assert self.writer.unappended_bytes <= left
        if self.writer.remembers(self.writer.appended):
            assert self.writer.unappended_bytes == left
        assert self.writer.unarchived_bytes == sum(len(event.text) for event in self.all[self.writer.archived :])

    @invariant()
    def the_state_is_the_fold(self) -> None:
        assert self.writer.head == len(self.all)
        assert self.writer.state == fold((event.envelope() for event in self.all), initial("run_1"))


TestLogWriter = LogWriterModel.TestCase
TestLogWriter.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_both_have_is_forgotten() -> None:
    writer = _writer()
    writer.mark_appended(1)
    writer.mark_archived(1)
    assert writer.remembers(1)
    assert not writer.remembers(0)
    writer.add("custom.tick", {})
    assert writer.remembers(1)
    assert not writer.remembers(0)
    assert not writer.remembers(3)


def test_events_behind_a_fact_are_held_back_with_it() -> None:
    writer = _writer()
    writer.add("custom.before", {})
    writer.add("custom.fact", {}, commit_first=True)
    writer.add("custom.behind", {})
    writer.add("custom.fact", {}, commit_first=True)
    assert _seqs(writer.appendable()) == [1, 2]
    writer.mark_archived(3)
    assert _seqs(writer.appendable()) == [1, 2, 3, 4]
    writer.mark_archived(5)
    assert _seqs(writer.appendable()) == [1, 2, 3, 4, 5]
