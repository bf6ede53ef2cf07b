"""The state with what the rules need to find its items in constant time.

The indexes stand beside the state and are made from it: nothing of them is stored or sent. Not responsible for what an
event does (`rules`).
"""

import heapq
from collections.abc import Iterable

from app.protocol.state import Item, State


class Items:
    """One list of the state, whose items are found by their id, and by some statuses."""

    __slots__ = ("_at", "_items", "_with")

    def __init__(self, items: list[Item], *watched: str) -> None:
        """
        :param items: the state's list, which is changed in place.
        :param watched: the statuses that `having` can be asked for.
        """
        self._items = items
        self._at: dict[str, int] = {}
        self._with: dict[str, set[int]] = {status: set() for status in watched}
        for at, item in enumerate(items):
            self._at[item["id"]] = at
            self._watch(at, item)

    def find(self, id: str) -> Item | None:
        """The item with this id."""
        at = self._at.get(id)
        return None if at is None else self._items[at]

    def put(self, item: Item) -> int:
        """Add the item, or put it in the place of the one with its id. Returns its index in the list."""
        at = self._at.setdefault(item["id"], len(self._items))
        if at == len(self._items):
            self._items.append(item)
        else:
            self._unwatch(at)
            self._items[at] = item
        self._watch(at, item)
        return at

    def set(self, item: Item, **changes: object) -> None:
        """Change members of an item that is in the list, its status perhaps among them."""
        at = self._at[item["id"]]
        self._unwatch(at)
        item.update(changes)
        self._watch(at, item)

    def set_all(self, statuses: Iterable[str], status: str) -> None:
        """Give the items that have one of these watched statuses another one."""
        for before in statuses:
            found, self._with[before] = self._with[before], set()
            for at in found:
                self._items[at]["status"] = status
            if status in self._with:
                self._with[status] |= found

    def _watch(self, at: int, item: Item) -> None:
        if (found := self._with.get(item["status"])) is not None:
            found.add(at)

    def _unwatch(self, at: int) -> None:
        if (found := self._with.get(self._items[at]["status"])) is not None:
            found.discard(at)


class IndexedState:
    """A state that is moved on in place, and its indexes, which the rules keep level with it."""

    __slots__ = ("_answers", "_plan", "approvals", "messages", "state", "steps", "subagents", "tool_calls")

    def __init__(self, state: State) -> None:
        self.state = state
        self.steps = Items(state["steps"], "running", "completed", "failed")
        self.messages = Items(state["messages"], "open", "completed")
        self.tool_calls = Items(state["tool_calls"], "running")
        self.approvals = Items(state["approvals"])
        self.subagents = Items(state["subagents"])
        self._answers = [-at for at, message in enumerate(state["messages"]) if _answers(message)]
        """A heap, the last message first: each that may be the answer, and some that may not any more."""
        heapq.heapify(self._answers)
        self._plan: dict[str, list[Item]] = {}
        self.set_plan(state["plan"])

    def set_plan(self, plan: list[Item]) -> None:
        """Replace the plan. An id may stand in it several times."""
        self.state["plan"] = plan
        self._plan = {}
        for entry in plan:
            self._plan.setdefault(entry["id"], []).append(entry)

    def mark_plan(self, id: str, status: str) -> None:
        """Give the plan's entries with this id the status."""
        for entry in self._plan.get(id, ()):
            entry["status"] = status

    def plan_status(self, id: str) -> str | None:
        """Of the plan's entry with this id; None: there is none."""
        entries = self._plan.get(id)
        return entries[-1]["status"] if entries else None

    def put_message(self, message: Item) -> None:
        """Add the message, or put it in the place of the one with its id."""
        before = self.messages.find(message["id"])
        at = self.messages.put(message)
        if _answers(message) and not (before and _answers(before)):
            heapq.heappush(self._answers, -at)

    def abandon_answers(self) -> None:
        """Abandon every message that may be the answer."""
        for at in self._answers:
            message = self.state["messages"][-at]
            if _answers(message):
                self.messages.set(message, status="abandoned")
        self._answers.clear()

    def follow_answer(self) -> None:
        """Give the answer the text of the last assistant message that is not abandoned."""
        messages, candidates = self.state["messages"], self._answers
        while candidates and not _answers(messages[-candidates[0]]):
            heapq.heappop(candidates)
        self.state["answer"]["text"] = messages[-candidates[0]]["text"] if candidates else ""


def _answers(message: Item) -> bool:
    return bool(message["role"] == "assistant" and message["status"] != "abandoned")
