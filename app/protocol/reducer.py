"""The fold: what a run's state is after its events. The only way to compute a snapshot.

Responsible for the order of events and for purity; the rule of each type is in `rules`. Not responsible for
checking payloads: an event in the log is valid.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from app.protocol.items import IndexedState
from app.protocol.rules import RULES
from app.protocol.state import ENDED, Item, State, initial

__all__ = ["ENDED", "Envelope", "Fold", "State", "fold", "initial", "reduce"]

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
    folded = Fold(_copy(state))
    for envelope in envelopes:
        folded.apply(envelope)
    return folded.state


def _copy(value: Any) -> Any:
    # Shares the texts, which may be megabytes, and is several times faster than copy.deepcopy.
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value
