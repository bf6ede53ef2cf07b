"""What a `Run` stands on: its calls, which a backend numbers, keeps and emits; and its host, the process around it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, NoReturn, Protocol, TypeVar

from runtail.errors import RuntailError
from runtail.handles import Approval, Question
from runtail.interrupts import Suspended, TimedOut
from runtail.records import NewApproval, OpRecord
from runtail.within import Places

T = TypeVar("T")


class Host(Protocol):
    """The process in which an agent runs, as far as a run depends on it."""

    def give_way(self) -> None:
        """Let others run; wait while too much is in memory only."""

    def sleep(self, seconds: float) -> None:
        """Sleep; the end of the run wakes the sleeper."""

    def alarm(self, seconds: float, timed_out: TimedOut) -> Callable[[], None]:
        """Stop the run in so many seconds, unless what is returned is called before."""

    def side_by_side(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        """The results of the functions, in order, once all have ended.

        :raises Suspended: any of them is to wait, with what all of them wait for.
        :raises Exception: what the first in order that failed has raised.
        """


class Log(Host, Protocol):
    """A host that keeps the log and the journal of its run: what `Journaled` stands on.

    Each payload passes the server's door: InvalidJson, TooDeep, InvalidEvent and HookFailed come from there.
    """

    @property
    def run_id(self) -> str:
        """The run."""

    @property
    def inputs(self) -> Mapping[int, str]:
        """What the user has sent, by number, as it was sent; only to be read."""

    @property
    def inputs_logged(self) -> int:
        """How many of them the log holds."""

    def emit(self, type: str, payload: Mapping[str, Any], op: str, *, fact: bool = False) -> None:
        """Add an event. `fact`: it has happened, so a hook that fails withholds its texts."""

    def commit(self, type: str, payload: Mapping[str, Any], op: str, record: OpRecord) -> None:
        """Add an event that is a fact, with the record of its call; return once both are committed."""

    def ask(self, payload: Mapping[str, Any], op: str, asked: Callable[[Mapping[str, Any]], NewApproval]) -> None:
        """As `commit`, of a question. `asked` makes its row of the payload as it goes out."""

    def asks(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """The payload of a question as it would go out."""

    def record(self, record: OpRecord) -> None:
        """Commit what a call came to, which no event tells of."""

    def delta(self, message_id: str, text: str, op: str) -> str:
        """Add a clean text of any length to a message; returns it as it went out."""

    def deltas(self, message_id: str, text: str) -> str:
        """The text as it would go out."""

    def message_text(self, message_id: str) -> str:
        """The text of a message, as the log has it; empty where it has none."""


class Calls(Protocol):
    """One branch of a run's calls. Every method but `branch`, `within` and `quietly` may raise Interrupted."""

    @property
    def host(self) -> Host:
        """The process around them."""

    @property
    def places(self) -> Places:
        """The steps and tool calls that the calling code is in."""

    def key(self, op: str) -> str:
        """What is the same whenever tool call `op` is made again; empty: nobody could know it again."""

    @property
    def keeps(self) -> bool:
        """Results are kept, and are JSON, the first time as later."""

    @property
    def run_id(self) -> str:
        """The run; empty outside one."""

    @property
    def cancelled(self) -> bool:
        """A cancel was requested, as far as is known."""

    def check(self) -> None:
        """Raise what stops the run, if there is something."""

    def refuse(self, error: RuntailError) -> None:
        """What a verb was given cannot be emitted: raise that; or say so, and let the agent go on without the event."""

    def suspended(self, suspended: Suspended) -> NoReturn:
        """A branch of this one waits, and so does this one."""

    def branch(self, op: str, n: int) -> "Calls":
        """The n-th branch of call `op`, whose calls are made side by side with those of other branches."""

    def within(self, op: str) -> AbstractContextManager[None]:
        """For the block, calls are made in the one branch of call `op`: they are not made where it is recorded."""

    def next(self, kind: str, *types: str, records: str | None = None) -> str:
        """The number of the call that is being made.

        :param kind: what is numbered: step, call, msg, apr; empty: nothing that has an id.
        :param types: beginnings of the types of its events.
        :param records: the kind of its record, if it has one.
        """

    def emit(self, type: str, payload: Mapping[str, Any], op: str) -> None:
        """Emit an event of call `op`, unless it was emitted before."""

    def tell(self, type: str, payload: Mapping[str, Any], op: str) -> None:
        """As `emit`, of what has happened: it is not refused."""

    def recorded(self, op: str, kind: str, name: str, arguments: object = None) -> OpRecord | None:
        """What call `op` came to, if that is recorded."""

    def record(
        self,
        op: str,
        kind: str,
        name: str,
        result: Any,
        *,
        arguments: object = None,
        kept: object = None,
        failed: bool = False,
        event: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Commit what call `op` came to, with the event that tells of it, before the agent gets to know.

        :param kept: what is stored of the arguments; None: these themselves. In either case without secrets.
        """

    def quietly(self, last: Callable[[], None]) -> None:
        """For a `finally`: do this, unless the run has been stopped; whoever ends it closes what is open."""

    def spoil(self, error: Exception) -> None:
        """The run ends with this error, whoever catches it: the call was made, and must not be made again."""

    def broken(self, why: str) -> NoReturn:
        """Raise NondeterministicAgent."""

    def new_message(self, op: str) -> str:
        """The id of a message that call `op` is about to begin."""

    def begin_message(self, message_id: str, role: str, op: str, *, replaces: bool = False) -> None:
        """Emit its start, whatever was emitted before. `replaces`: the assistant's messages before it are abandoned."""

    def delta(self, message_id: str, text: str, op: str) -> str:
        """Write a piece of clean text, of any length; returns it as it went out."""

    def deltas(self, message_id: str, text: str) -> str:
        """The text as it went out when it was written before."""

    def message_text(self, message_id: str) -> str:
        """The text of a message that was completed before."""

    def sleep(self, seconds: float, given: object) -> None:
        """:param given: the seconds as the agent gave them."""

    def approve(self, question: Question, id: str | None) -> Approval:
        """Ask, and wait for the decision. `id`: the asker's own name for the question."""

    def inputs(self, wait: bool) -> list[str]:
        """What the user has sent since the last call, in order."""

    def now(self) -> datetime:
        """The time, in UTC."""

    def random(self) -> float:
        """A number from 0 up to 1."""
