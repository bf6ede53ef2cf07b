"""The fold: what a run's state is after its events. The only way to compute a snapshot.

Responsible for the order of events and for purity; the rule of each type is in `rules`. Not responsible for
checking payloads: an event in the log is valid.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from app.protocol.items import IndexedState
from app.protocol.rules import RULES
from app.protocol.state import ENDED, Item, State, initial

__all__ = ["ENDED", "Envelope", "Fold", "State", "advance", "fold", "initial", "reduce", "still"]

Envelope = Mapping[str, Any]


class Fold:
    """A state that is moved on in place, for its owner: each event takes the same time, whatever the state holds."""

    __slots__ = ("_indexed", "state")

    def __init__(self, state: State) -> None:
        """
        :param state: the fold's own from here on. Nobody else may change it.
        """
        self.state = state
        self._indexed = IndexedState(state)

    def step(self, id: str) -> Item | None:
        """The step with this id."""
        return self._indexed.steps.find(id)

    def message(self, id: str) -> Item | None:
        """The message with this id."""
        return self._indexed.messages.find(id)

    def tool_call(self, id: str) -> Item | None:
        """The tool call with this id."""
        return self._indexed.tool_calls.find(id)

    def apply(self, envelope: Envelope) -> None:
        """Move the state on by one event.

        :raises ValueError: a gap or repeat in seq, another run's event, or an event after the terminal one. A log
            never holds these, so folding them is a bug. The state is as it was.
        """
        state, seq = self.state, envelope["seq"]
        if seq != state["last_seq"] + 1:
            raise ValueError(f"gap: seq {seq} cannot follow {state['last_seq']}")
        if envelope["run_id"] != state["run_id"]:
            raise ValueError(f"an event of {envelope['run_id']} in the log of {state['run_id']}")
        if state["status"] in ENDED:
            raise ValueError(f"seq {seq} follows the terminal event")
        rule = RULES.get(envelope["type"])
        if rule is not None:
            rule(self._indexed, envelope["payload"])
        state["last_seq"] = seq
        state["last_ts"] = envelope["ts"]


def reduce(state: State, envelope: Envelope) -> State:
    """The state after the event; `state` stays as it is. Raises as `Fold.apply` does.

    This copies the state: use `fold`, or a `Fold`, for more than a few events.
    """
    return fold((envelope,), state)


def fold(envelopes: Iterable[Envelope], state: State) -> State:
    """The state after all events; `state` stays as it is. Raises as `Fold.apply` does."""
    return advance(still(state), envelopes)


def advance(state: State, envelopes: Iterable[Envelope]) -> State:
    """The state after all events, into which `state`, that the caller owns, was made. Raises as `Fold.apply` does."""
    folded = Fold(state)
    for envelope in envelopes:
        folded.apply(envelope)
    return folded.state


def still(state: State) -> State:
    """A copy that no later event changes: the rules replace what stands in an item, and change nothing within it."""
    copied: Any = {name: _copy(member) for name, member in state.items()}
    return cast(State, copied)


def _copy(member: Any) -> Any:
    if isinstance(member, list):
        return [item.copy() if isinstance(item, dict) else item for item in member]
    return member.copy() if isinstance(member, dict) else member
