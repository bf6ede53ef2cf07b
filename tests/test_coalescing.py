"""Questions that share a round trip: who goes along, who waits, and what becomes of them when somebody is stopped."""

from collections.abc import Callable, Sequence

import gevent
import pytest
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from app.errors import Refused, RuntailError, StoreFailed, StoreUnavailable
from app.storage.coalescing import Bounded, Coalescer

Question = tuple[str, int]


class Trips:
    """Round trips that end when a test lets them, and the questions of each."""

    def __init__(self) -> None:
        self.made: list[list[Question]] = []
        self.gate = Event()

    def __call__(self, questions: Sequence[Question]) -> Sequence[int]:
        self.made.append(list(questions))
        self.gate.wait(10)
        gevent.sleep(0)
        return [size for _, size in questions]


@pytest.fixture(autouse=True)
def _cooperative_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a web process, whose locks gevent has patched."""
    monkeypatch.setattr("app.storage.coalescing.threading.Lock", BoundedSemaphore)


def asking(trips: Callable[[Sequence[Question]], Sequence[int]], most: int = 200) -> Coalescer[Question, int]:
    """With at most 10 in one round trip."""
    return Coalescer(trips, most, Bounded(lambda question: question, 10))


def test_a_small_question_does_not_wait_for_the_large_ones_before_it() -> None:
    trips = Trips()
    together = asking(trips)
    large = [gevent.spawn(together.ask, (f"run_{n}", 9)) for n in range(50)]
    gevent.idle()
    small = gevent.spawn(together.ask, ("run_small", 1))
    gevent.idle()
    trips.gate.set()
    assert small.get(timeout=10) == 1
    assert ("run_small", 1) in [question for made in trips.made[:2] for question in made]
    assert [one.get(timeout=10) for one in large] == [9] * 50
    assert all(sum(size for _, size in made) <= 10 for made in trips.made)


def test_questions_of_one_kind_keep_their_order() -> None:
    trips = Trips()
    together = asking(trips)
    asked = [("a", 8), ("b", 8), ("b", 1), ("c", 1), ("b", 2)]
    waiting = [gevent.spawn(together.ask, one) for one in asked]
    gevent.idle()
    trips.gate.set()
    gevent.joinall(waiting, timeout=10, raise_error=True)
    flat = [question for made in trips.made for question in made]
    assert [question for question in flat if question[0] == "b"] == [("b", 8), ("b", 1), ("b", 2)]


def test_one_that_is_larger_than_a_round_trip_goes_alone() -> None:
    trips = Trips()
    trips.gate.set()
    together = asking(trips)
    waiting = [gevent.spawn(together.ask, (name, size)) for name, size in (("a", 500), ("b", 1), ("c", 500))]
    gevent.joinall(waiting, timeout=10, raise_error=True)
    assert [one.value for one in waiting] == [500, 1, 500]


def test_who_is_stopped_while_waiting_holds_up_nobody() -> None:
    trips = Trips()
    together = asking(trips)
    waiting = [gevent.spawn(together.ask, (f"run_{n}", 9)) for n in range(4)]
    gevent.idle()
    waiting[1].kill()
    waiting[2].kill()
    trips.gate.set()
    assert waiting[0].get(timeout=10) == waiting[3].get(timeout=10) == 9
    assert together.ask(("later", 1)) == 1
    assert [made[0][0] for made in trips.made] == ["run_0", "run_3", "later"]


def test_who_is_stopped_while_it_asks_for_others_leaves_the_rest_to_the_next() -> None:
    trips = Trips()
    together = asking(trips)
    first = gevent.spawn(together.ask, ("first", 9))
    gevent.idle()
    others = [gevent.spawn(together.ask, (f"run_{n}", 4)) for n in range(4)]
    gevent.idle()
    first.kill()
    trips.gate.set()
    assert [other.get(timeout=10) for other in others] == [4] * 4


def test_what_an_answer_raises_is_raised_for_everybody_of_that_round_trip_only() -> None:
    started = Event()

    def answer(questions: Sequence[Question]) -> Sequence[int]:
        started.wait(10)
        if ("bad", 9) in questions:
            raise StoreUnavailable("away")
        return [size for _, size in questions]

    together = asking(answer)
    waiting = {name: gevent.spawn(together.ask, (name, size)) for name, size in (("bad", 9), ("with", 1), ("good", 9))}
    gevent.idle()
    started.set()
    assert waiting["good"].get(timeout=10) == 9
    assert waiting["with"].get(timeout=10) == 1
    with pytest.raises(StoreUnavailable):
        waiting["bad"].get(timeout=10)


@pytest.mark.parametrize(
    "refusal",
    [StoreUnavailable("deadlock", answered=True), StoreFailed("why?", answered=True), Refused("no")],
    ids=repr,
)
def test_what_the_store_refuses_of_one_is_done_for_the_others(refusal: RuntailError) -> None:
    started = Event()

    def answer(questions: Sequence[Question]) -> Sequence[int]:
        started.wait(10)
        if ("bad", 1) in questions:
            raise refusal
        return [size for _, size in questions]

    together = asking(answer)
    waiting = {name: gevent.spawn(together.ask, (name, 1)) for name in ("first", "good", "bad", "too")}
    gevent.idle()
    started.set()
    assert [waiting[name].get(timeout=10) for name in ("first", "good", "too")] == [1, 1, 1]
    with pytest.raises(type(refusal)):
        waiting["bad"].get(timeout=10)


def test_who_waits_too_long_for_a_round_trip_is_told_so_and_the_next_one_is_made_all_the_same() -> None:
    started = Event()

    def answer(questions: Sequence[Question]) -> Sequence[int]:
        started.wait(10)
        return [size for _, size in questions]

    together = Coalescer(answer, 10, patience_seconds=0.1)
    first, second = gevent.spawn(together.ask, ("a", 1)), gevent.spawn(together.ask, ("b", 2))
    with pytest.raises(StoreUnavailable):
        second.get(timeout=10)
    third = gevent.spawn(together.ask, ("c", 3))
    gevent.idle()
    started.set()
    assert (first.get(timeout=10), third.get(timeout=10)) == (1, 3)
