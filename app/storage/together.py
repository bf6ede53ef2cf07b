"""Questions that are asked at the same moment share one round trip: what a storm of clients needs.

One that fails its round trip fails alone: the others are asked without it.

Not responsible for what is asked.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from app.errors import StoreFailed, StoreUnavailable

Q = TypeVar("Q")
A = TypeVar("A")


class _Asked(Generic[Q, A]):
    __slots__ = ("answers", "error", "question")

    def __init__(self, question: Q) -> None:
        self.question = question
        self.answers: list[A] = []
        """One, once it is there."""
        self.error: BaseException | None = None


class Together(Generic[Q, A]):
    """Who asks while a round trip is under way goes along with the next one."""

    def __init__(self, answer: Callable[[Sequence[Q]], Sequence[A]], most: int) -> None:
        """
        :param answer: makes one round trip; an answer for each question, in order. Where it raises anything but that
            the store cannot be reached, nothing has been done.
        :param most: questions in one round trip.
        """
        self._answer = answer
        self._most = most
        self._waiting: deque[_Asked[Q, A]] = deque()
        self._turn = threading.Lock()

    def ask(self, question: Q) -> A:
        """The answer. Raises what `answer` raises; StoreUnavailable where it was stopped on another's behalf."""
        asked: _Asked[Q, A] = _Asked(question)
        self._waiting.append(asked)
        with self._turn:
            while not asked.answers and asked.error is None:
                self._go([self._waiting.popleft() for _ in range(min(len(self._waiting), self._most))])
        if asked.error is None:
            return asked.answers[0]
        if isinstance(asked.error, Exception):
            raise asked.error
        raise StoreUnavailable("The question was not answered.") from asked.error

    def _go(self, group: Sequence[_Asked[Q, A]]) -> None:
        try:
            answers = self._answer([asked.question for asked in group])
        except BaseException as error:
            if len(group) > 1 and _is_of_one(error):
                self._go(group[: len(group) // 2])
                return self._go(group[len(group) // 2 :])
            for asked in group:
                asked.error = error
            if not isinstance(error, Exception):
                raise
            return
        for asked, answer in zip(group, answers, strict=True):
            asked.answers.append(answer)


def _is_of_one(error: BaseException) -> bool:
    """Whether it may be one question's fault, which the store has refused."""
    if isinstance(error, StoreUnavailable):
        return isinstance(error, StoreFailed)  # an outage is everybody's
    return isinstance(error, Exception)
