"""Questions that are asked at the same moment share one round trip: what a storm of clients needs.

Not responsible for what is asked.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from app.errors import StoreUnavailable

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
        :param answer: makes one round trip; an answer for each question, in order.
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
            for asked in group:
                asked.error = error
            if not isinstance(error, Exception):
                raise
            return
        for asked, answer in zip(group, answers, strict=True):
            asked.answers.append(answer)
