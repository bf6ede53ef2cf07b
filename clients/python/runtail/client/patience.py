"""How long a writer waits for the server, and a call that never takes longer than that, whatever hangs."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLong
from dataclasses import dataclass
from typing import TypeVar

from runtail.errors import Unreachable

T = TypeVar("T")

FINISH_SECONDS = 10.0
"""How long the end of a run may take to be confirmed, by default."""
ROOM_SECONDS, ANSWER_SECONDS, AWAY_SECONDS = 10.0, 10.0, 60.0
"""Of a job: see `Patience`."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that a writer waits for the server.

    :ivar finish: for the end of the run to be confirmed.
    :ivar room: for room in a full buffer; then what is in it is dropped, and the run cannot be completed.
    :ivar answer: for an answer to `inputs()`.
    :ivar away: for a person, while the server does not answer.
    """

    finish: float = FINISH_SECONDS
    room: float = math.inf
    answer: float = math.inf
    away: float = math.inf

    @classmethod
    def of_jobs(cls, finish: float) -> "Patience":
        """A job does its work whether the server is there or not."""
        return cls(finish, ROOM_SECONDS, ANSWER_SECONDS, AWAY_SECONDS)


def within(seconds: float, ask: Callable[[], T], too_late: Callable[[T], None]) -> T:
    """What `ask` returns or raises, within so many seconds.

    Timeouts of sockets are not enough: a resolver has none, and a server that sends a byte now and then meets them all.

    :param too_late: gets what `ask` returned when nobody waited for it any more.
    :raises Unreachable: it took longer.
    """
    answer: Future[T] = Future()
    threading.Thread(target=_answer, args=(answer, ask, too_late), name="runtail asks", daemon=True).start()
    try:
        return answer.result(seconds)
    except TooLong:
        if answer.cancel():
            raise Unreachable(f"The server has not answered within {seconds:.1f} s.") from None
        return answer.result()
    except BaseException:  # this thread was interrupted, or `ask` has raised it
        if not answer.cancel() and answer.exception() is None:
            too_late(answer.result())
        raise


def _answer(answer: "Future[T]", ask: Callable[[], T], too_late: Callable[[T], None]) -> None:
    try:
        found = ask()
    except BaseException as error:  # whatever it is, the waiting thread is to have it
        if answer.set_running_or_notify_cancel():
            answer.set_exception(error)
        return
    if answer.set_running_or_notify_cancel():
        answer.set_result(found)
    else:
        too_late(found)
