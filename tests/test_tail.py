"""The tail's memory: what it takes in, and what of it a window that is a little behind can have."""

import pytest

from app.protocol.events import Event, encode
from app.streaming import tail as module
from app.streaming.tail import Ring, Tail
from app.streaming.windows.base import Closing, Limits, Window
from app.streaming.windows.iterated import IteratedWindow
from app.streaming.wire import NDJSON, SSE, Format, wire
from app.wiring import Services

MOMENT = "2026-06-12T12:00:01.234Z"
LIMITS = Limits(15, 30, 300, 5_000, 1_000_000)


def made(first: int, last: int) -> list[Event]:
    return [encode("run_1", seq, "custom.tick", {"n": seq}, MOMENT) for seq in range(first, last + 1)]


def window_of(tail: Tail, format: Format) -> Window:
    window = Window(tail, wire(format, chunked=True), 0, LIMITS, ticket=None)  # type: ignore[arg-type]
    tail.enter(window)
    return window


@pytest.fixture
def tail() -> Tail:
    return Tail("run_1", head=1, ready=True)


def test_events_that_do_not_follow_the_head_are_not_taken(tail: Tail) -> None:
    assert tail.accept(made(3, 5), 0.0) is None
    assert tail.accept([], 0.0) is None
    assert tail.head == 1


def test_events_that_are_known_already_are_left_out(tail: Tail) -> None:
    window_of(tail, NDJSON)
    tail.accept(made(2, 4), 0.0)
    assert tail.accept(made(2, 4), 0.0) is None
    assert tail.accept(made(3, 5), 0.0) == {NDJSON: [NDJSON.event(event) for event in made(5, 5)]}
    assert tail.head == 5


def test_a_ring_of_a_format_that_nobody_had_for_a_while_begins_anew(tail: Tail) -> None:
    lines = window_of(tail, NDJSON)
    tail.accept(made(2, 3), 0.0)
    tail.leave(lines)
    window_of(tail, SSE)
    tail.accept(made(4, 6), 0.0)
    window_of(tail, NDJSON)
    tail.accept(made(7, 8), 0.0)
    assert tail.rings[NDJSON].after(6) == [NDJSON.event(event) for event in made(7, 8)]
    assert tail.rings[NDJSON].after(5) == []
    assert tail.rings[SSE].after(3) == [SSE.event(event) for event in made(4, 8)]


def test_a_run_that_begins_to_be_watched_has_its_end_in_memory_for_every_window_that_waits(tail: Tail) -> None:
    window_of(tail, NDJSON).cursor = 4
    window_of(tail, SSE).cursor = 3
    window_of(tail, SSE).cursor = None
    tail.begin(made(4, 6))
    assert tail.head == 6
    for format in (NDJSON, SSE):
        assert tail.rings[format].after(3) == [format.event(event) for event in made(4, 6)]
        assert tail.rings[format].after(2) == []
    tail.accept(made(7, 7), 0.0)
    assert tail.rings[SSE].after(4) == [SSE.event(event) for event in made(5, 7)]


@pytest.mark.parametrize("cursor", [None, 2, 6, 9])
def test_nothing_is_kept_for_who_has_it_or_lacks_more(tail: Tail, cursor: int | None) -> None:
    window_of(tail, SSE).cursor = cursor
    tail.rings[NDJSON] = Ring(0)
    tail.begin(made(4, 6))
    assert (tail.head, tail.rings) == (6, {}), "nor what was there before"


def test_of_an_end_that_is_large_only_what_is_small_is_kept(tail: Tail) -> None:
    window = window_of(tail, SSE)
    large = encode("run_1", 5, "custom.tick", {"text": "x" * module.RING_BYTES}, MOMENT)
    for window.cursor in (3, 4):
        tail.begin([*made(4, 4), large, *made(6, 7)])
        assert tail.rings == {}
    window.cursor = 5
    tail.begin([*made(4, 4), large, *made(6, 7)])
    assert tail.rings[SSE].after(5) == [SSE.event(event) for event in made(6, 7)]
    tail.begin([large])
    assert (tail.head, tail.rings) == (5, {})


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_may_have_no_end_or_one_that_is_terminal(tail: Tail, ended: bool) -> None:
    window_of(tail, SSE)
    tail.begin([encode("run_1", 3, "run.completed", {}, MOMENT)] if ended else [])
    assert (tail.head, tail.ended) == ((3, True) if ended else (0, False))


def test_a_ring_forgets_the_oldest_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RING_EVENTS", 4)
    ring = Ring(10)
    for number in range(11, 21):
        ring.add([b"%d" % number])
    assert len(ring.frames) <= 4
    assert ring.after(9) == [], "before what it has"
    assert ring.after(18) == [b"19", b"20"]
    assert ring.after(20) == []
    assert ring.size == sum(map(len, ring.frames))


def test_a_window_that_is_iterated_over_ends_when_the_hub_gives_it_up(tail: Tail, services: Services) -> None:
    left: list[Closing] = []
    window = IteratedWindow(
        tail,
        wire(SSE, chunked=False),
        1,
        LIMITS,
        ticket=None,  # type: ignore[arg-type]
        history=services.history,
        leave=lambda _, why: left.append(why),
        watched=lambda: True,
    )
    tail.enter(window)
    body = iter(window)
    assert next(body) == SSE.opening
    window.close(Closing.FAILED)
    assert list(body) == []
    assert left == [Closing.FAILED]
