"""What a client has seen of a run whose deltas are numbered.

Responsible for counting. Not responsible for how the numbers came.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

NUMBER = re.compile(r"#(\d+)#")


def numbers(text: str) -> list[int]:
    """The numbers of the deltas in this text, in order; a delta is "#17# and some words "."""
    return [int(found) for found in NUMBER.findall(text)]


@dataclass(slots=True)
class Account:
    """The deltas 0 … count - 1 of a run, each by how often it was seen."""

    count: int
    times: Counter[int] = field(default_factory=Counter)
    furthest: int = -1
    """The highest number so far; -1: none."""

    def see(self, found: Iterable[int]) -> bool:
        """Note these; whether one of them is further than any before."""
        before = self.furthest
        for number in found:
            self.times[number] += 1
            self.furthest = max(self.furthest, number)
        return self.furthest > before

    @property
    def lost(self) -> int:
        """How many were never seen."""
        return self.count - len(self.times)

    @property
    def doubled(self) -> int:
        """How many sights were of one that had been seen."""
        return self.times.total() - len(self.times)
