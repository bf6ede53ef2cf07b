"""A followed run in a terminal: its state as a picture, drawn anew a few times a second.

Responsible for the look of a state. Not responsible for pipes and files, nor for what may be printed at all
(both `app.cli.plain`), nor for getting the events (`app.client`).
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from app.cli.plain import Item, Lines, how_to_decide, one_line, open_approvals, printable, seconds
from app.protocol.reducer import ENDED, Envelope, Fold, State

REFRESH_PER_SECOND = 10
BAR_WIDTH = 20
TEXT_CUT = 4_096
"""A long text loses its beginning, while it grows, in pieces of so many characters: the rest keeps its lines."""
HINT = "Ctrl-C stops watching, not the run"

MARKS = {
    "pending": ("○", "dim"),
    "running": ("●", "blue"),
    "completed": ("✓", "green"),
    "failed": ("✗", "red"),
    "cancelled": ("–", "yellow"),
}
UNMARKED = ("·", "dim")
APPROVAL = ("?", "yellow")


class View(Protocol):
    """Shows one run, from `with` to its end."""

    @property
    def still(self) -> AbstractContextManager[object]:
        """To be held while the fold that was shown is moved on."""

    def show(self, envelope: Envelope, fold: Fold) -> None:
        """An event or control frame came; `fold` is what it led to."""

    def trouble(self, reason: str | None) -> None:
        """The connection is lost, or with None is back."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view(since: int = 0) -> View:
    """Live on a terminal; lines where the output goes elsewhere.

    :param since: lines begin after this event. The live view is always of the whole run.
    """
    console = Console(highlight=False)
    # Not console.is_terminal: that one believes FORCE_COLOR, which says nothing about where the output goes.
    if sys.stdout.isatty() and not console.is_dumb_terminal:
        return Screen(console)
    return Lines(sys.stdout, sys.stderr, since)


class Screen:
    """As much of the picture as the terminal holds; the whole of it is left behind at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._spinner = Spinner("dots", style="blue")
        self._state: State | None = None
        self._began: datetime | None = None
        self._trouble: str | None = None
        self._still = threading.Lock()
        self._live = Live(
            console=console,
            get_renderable=self._moving,  # called by Live's own thread
            refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._state is not None:
            self._console.print(Group(*_picture(self._state), self._summary(self._state)))

    def show(self, envelope: Envelope, fold: Fold) -> None:
        """Show this state from the next refresh on."""
        if envelope.get("seq") == 1:
            self._began = datetime.fromisoformat(envelope["ts"])
        self._state = fold.state

    @property
    def still(self) -> AbstractContextManager[object]:
        """To be held while the state that was shown is moved on: another thread draws it."""
        return self._still

    def trouble(self, reason: str | None) -> None:
        """Say so below the picture."""
        self._trouble = reason

    def _moving(self) -> RenderableType:
        if self._state is None:
            return self._footer("connecting")
        size = self._console.size
        with self._still:
            lead, picture = f"{self._state['status']} · {HINT}", [*_picture(self._state, size.width * size.height)]
        return _Bottom(Group(*picture, self._footer(lead)))

    def _footer(self, text: str) -> RenderableType:
        row = Table.grid(padding=(0, 1))
        if self._trouble is None:
            row.add_row(self._spinner, Text(text, "dim", overflow="ellipsis", no_wrap=True))
        else:
            row.add_row(self._spinner, Text(f"{one_line(self._trouble)} Trying again.", "yellow"))
        return _spaced(row)

    def _summary(self, state: State) -> RenderableType:
        parts = [state["status"]]
        if self._began and state["last_ts"] and state["status"] in ENDED:
            took = datetime.fromisoformat(state["last_ts"]) - self._began
            parts[0] += f" in {took.total_seconds():.1f} s"
        parts.append(f"{state['last_seq']} events")
        parts += [f"{amount} {one_line(name).replace('_', ' ')}" for name, amount in state["usage"].items()]
        return _spaced(Text.assemble(MARKS.get(state["status"], UNMARKED), " ", " · ".join(parts)))


class _Bottom:
    """The last lines of something, as many as the terminal has."""

    def __init__(self, whole: RenderableType) -> None:
        self._whole = whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._whole, options.update(height=None), pad=False)
        for line in lines[-max(options.size.height - 1, 1) :]:
            yield from line
            yield Segment.line()


def _picture(state: State, text_chars: int | None = None) -> Iterator[RenderableType]:
    """The parts of the picture, from the top.

    :param text_chars: how much of the text's end is wanted; None: all of the text.
    """
    attempt = f", attempt {state['attempt']}" if state["attempt"] > 1 else ""
    yield Text.assemble((one_line(state["agent"]), "bold"), " ", (one_line(state["run_id"]) + attempt, "dim"))
    yield _steps(state)
    for approval in open_approvals(state):
        yield Text(f"  To decide: {how_to_decide(approval['id'], state)}", APPROVAL[1])
    text = "\n\n".join(m["text"] for m in state["messages"] if m["status"] != "abandoned" and m["text"])
    if text:
        cut = 0 if text_chars is None else max(0, len(text) - text_chars) // TEXT_CUT * TEXT_CUT
        yield _spaced(Text(printable(text[cut:])))
    if state["sources"] or state["checks"]:
        yield _spaced(_evidence(state))
    if state["error"] is not None:
        yield _spaced(Text(f"{printable(state['error']['message'])} ({state['error']['code']})", "red"))


def _steps(state: State) -> Table:
    """The plan, then the steps that it does not name; each with its tool calls."""
    rows: dict[str | None, dict[str, Any]] = {}
    current = [step for step in state["steps"] if step["status"] != "abandoned"]
    for item in (*state["plan"], *current):
        rows[item["id"]] = {**rows.get(item["id"], {}), **item}
    table = _grid()
    calls: dict[str | None, list[dict[str, Any]]] = {}
    for call in state["tool_calls"]:
        calls.setdefault(call["step_id"] if call["step_id"] in rows else None, []).append(call)
    for item in rows.values():
        _add(table, item, item["title"], item.get("label"))
        for call in calls.get(item["id"], ()):
            _add(table, call, call["label"], call.get("progress_label"), indent=2)
    for call in calls.get(None, ()):
        _add(table, call, call["label"], call.get("progress_label"))
    for approval in state["approvals"]:
        table.add_row(_cell(approval["label"], APPROVAL), "", Text(approval["status"], "dim"))
    return table


def _add(table: Table, item: Item, title: str, label: str | None, indent: int = 0) -> None:
    running = item["status"] == "running"
    bar = ProgressBar(1, item["fraction"], width=BAR_WIDTH) if running and item.get("fraction") else ""
    end = (label or "") if running else (item.get("error_code") or seconds(item))
    table.add_row(_cell(title, MARKS.get(item["status"], UNMARKED), indent), bar, Text(one_line(end), "dim"))


def _evidence(state: State) -> Table:
    table = _grid()
    for source in state["sources"]:
        table.add_row(_cell(source["title"], UNMARKED), "", Text(one_line(source["snippet"] or ""), "dim"))
    for check in state["checks"]:
        mark = MARKS["completed" if check["passed"] else "failed"]
        table.add_row(_cell(check["name"], mark), "", Text(one_line(check["note"] or ""), "dim"))
    return table


def _grid() -> Table:
    table = Table.grid(padding=(0, 1))
    for _ in range(3):
        table.add_column(no_wrap=True, overflow="ellipsis")
    return table


def _cell(text: str, mark: tuple[str, str], indent: int = 0) -> Text:
    return Text.assemble(" " * indent, mark, " ", one_line(text))


def _spaced(part: RenderableType) -> Padding:
    """With an empty line above. Not padded to the terminal's width: the echo of Ctrl-C would wrap there."""
    return Padding(part, (1, 0, 0, 0), expand=False)
