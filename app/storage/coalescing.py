"""Questions that are asked at the same moment share one round trip: what a storm of clients needs.

One that fails its round trip fails alone: the others are asked without it.

Not responsible for what is asked.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import StoreUnavailable

PATIENCE_SECONDS = 5.0
"""As long as a connection to Postgres is waited for."""

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Bounded(Generic[Q]):
    """What one round trip may carry. A question that does not fit is left for the next one, with those of its kind."""

    weigh: Callable[[Q], tuple[str, int]]
    """The kind of a question, which keeps its order, and its size."""
    most: int
    """Of all sizes; one question alone may be larger."""


class _Asked(Generic[Q, A]):
    __slots__ = ("answers", "error", "gate", "leads", "question")

    def __init__(self, question: Q) -> None:
        self.question = question
        self.answers: list[A] = []
        """One, once it is there."""
        self.error: BaseException | None = None
        self.leads = False
        """It makes the next round trip."""
        self.gate = threading.Lock()
        """Closed for who has to wait; opens once it has its answer, or is to lead."""


class Coalescer(Generic[Q, A]):
    """Who asks while a round trip is under way goes along with one of the next."""

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[A]],
        most: int,
        bounded: Bounded[Q] | None = None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """
        :param answer: makes one round trip; an answer for each question, in order. Where it raises anything but that
            the store cannot be reached, nothing has been done.
        :param most: questions in one round trip.
        :param bounded: how large they may be, together; None: they are all small.
        :param patience_seconds: who has waited so long for a round trip to begin is told that there was none.
        """
        self._answer = answer
        self._most = most
        self._bounded = bounded
        self._patience_seconds = patience_seconds
        self._waiting: deque[_Asked[Q, A]] = deque()
        self._led = False
        """Somebody makes a round trip, or is about to."""
        self._guard = threading.Lock()
        """For servers with threads. Nothing waits while it is held."""

    def ask(self, question: Q) -> A:
        """The answer. Raises what `answer` raises.

        :raises StoreUnavailable: it was stopped on another's behalf, or the round trips before it took too long.
        """
        asked: _Asked[Q, A] = _Asked(question)
        with self._guard:
            self._waiting.append(asked)
            asked.leads, self._led = not self._led, True
            if not asked.leads:
                asked.gate.acquire()
        try:
            if not asked.leads:
                self._wait(asked)
            if asked.leads:
                self._go(asked, self._next())
        finally:
            self._leave(asked)
        if asked.error is None:
            return asked.answers[0]
        if isinstance(asked.error, Exception):
            raise asked.error
        raise StoreUnavailable("The question was not answered.") from asked.error

    def _wait(self, asked: _Asked[Q, A]) -> None:
        """For its answer, or its turn to lead."""
        if asked.gate.acquire(timeout=self._patience_seconds):
            return
        with self._guard:
            if asked in self._waiting and not asked.leads:
                raise StoreUnavailable(f"No round trip to the store began within {self._patience_seconds} s.")
        asked.gate.acquire()

    def _next(self) -> list[_Asked[Q, A]]:
        """Who goes along. The first that waits always does; what is small does not wait for what is large before it."""
        with self._guard:
            if self._bounded is None:
                return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._most))]
            taken, left = _fitting(self._waiting, self._most, self._bounded)
            self._waiting.extendleft(reversed(left))
            return taken

    def _go(self, leader: _Asked[Q, A], group: Sequence[_Asked[Q, A]]) -> None:
        try:
            self._settle(group)
        except BaseException as error:  # the leader is stopped
            for asked in group:
                if not asked.answers and asked.error is None:
                    asked.error = error
            raise
        finally:
            for asked in group:
                if asked is not leader:
                    asked.gate.release()

    def _settle(self, group: Sequence[_Asked[Q, A]]) -> None:
        try:
            answers = self._answer([asked.question for asked in group])
        except Exception as error:
            if len(group) > 1 and _is_of_one(error):
                self._settle(group[: len(group) // 2])
                return self._settle(group[len(group) // 2 :])
            for asked in group:
                asked.error = error
            return
        for asked, answer in zip(group, answers, strict=True):
            asked.answers.append(answer)

    def _leave(self, asked: _Asked[Q, A]) -> None:
        """Answered, or stopped while waiting: then nobody wants the answer. Who led has the next one lead."""
        with self._guard:
            if asked in self._waiting:
                self._waiting.remove(asked)
            if not asked.leads:
                return
            self._led = bool(self._waiting)
            if self._waiting:
                self._waiting[0].leads = True
                self._waiting[0].gate.release()


def _fitting(
    waiting: deque[_Asked[Q, A]], most: int, bounded: Bounded[Q]
) -> tuple[list[_Asked[Q, A]], list[_Asked[Q, A]]]:
    """Take out of those that wait who goes along, and who was passed over; those behind them stay."""
    taken: list[_Asked[Q, A]] = []
    left: list[_Asked[Q, A]] = []
    kinds_left: set[str] = set()
    room = bounded.most
    while waiting and len(taken) < most:
        asked = waiting.popleft()
        kind, size = bounded.weigh(asked.question)
        if kind in kinds_left or (taken and size > room):
            kinds_left.add(kind)
            left.append(asked)
        else:
            taken.append(asked)
            room -= size
    return taken, left


def _is_of_one(error: Exception) -> bool:
    """Whether it may be one question's fault: the store was there, and did not do it."""
    return not isinstance(error, StoreUnavailable) or error.answered
