"""Which call of an agent Postgres refuses: asked once it has refused a run's checkpoint, which ends the run."""

from app.errors import Refused
from app.protocol.events import Event
from app.storage.run_store import Checkpoint, NewApproval, OpRecord, RunStore

NAME_CHARS = 100
"""Of a tool's name in a sentence."""

_Piece = Event | OpRecord | NewApproval


def refused_call(store: RunStore, checkpoint: Checkpoint) -> str:
    """The first call whose event, record or question is refused, as the beginning of a sentence.

    :raises StoreUnavailable: Postgres cannot be reached.
    """
    pieces: list[_Piece] = [*checkpoint.events, *checkpoint.ops, *checkpoint.approvals]
    taken, refused = 0, len(pieces) + 1
    """So many from the first on are taken; so many are not, if only for their state."""
    while refused - taken > 1:
        middle = (taken + refused) // 2
        if store.would_archive(_part(checkpoint, pieces[:middle])):
            taken = middle
        else:
            refused = middle
    return _named(pieces[taken]) if taken < len(pieces) else "The run"


def sentence(call: str, error: Exception) -> str:
    """Why a run fails whose `call` cannot be stored. What the value was is nobody's to read in it."""
    why = error.detail if isinstance(error, Refused) else "It has no form that can be stored."
    return f"{call} cannot be stored. {why}"


def _part(whole: Checkpoint, pieces: list[_Piece]) -> Checkpoint:
    return Checkpoint(
        whole.run_id,
        whole.epoch,
        [piece for piece in pieces if isinstance(piece, Event)],
        ops=[piece for piece in pieces if isinstance(piece, OpRecord)],
        approvals=[piece for piece in pieces if isinstance(piece, NewApproval)],
    )


def _named(piece: _Piece) -> str:
    match piece:
        case OpRecord():
            return f"Call {piece.op}, {piece.kind} {piece.name[:NAME_CHARS]!r}"
        case NewApproval():
            return f"Call {piece.id.removeprefix('apr_')}, approve"
        case _:
            return f"Call {piece.op}, {piece.type}" if piece.op else f"The event {piece.type}"
