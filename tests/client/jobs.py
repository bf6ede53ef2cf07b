"""Jobs that a plain `rq worker` executes, of a module such as an application has it."""

import contextlib
import os
import signal
import time
from pathlib import Path

from rq import Retry

from runtail import Run, ToolError
from runtail.client import Runtail

client = Runtail(os.environ["RUNTAIL_URL"], beat_seconds=0.1)


@client.job
def report(run: Run, month: str) -> str:
    """Succeeds."""
    rows = run.tool("query", len, month, label="Reading the books")
    return run.stream([f"{rows} letters ", f"in {month}."])


@client.job(user="carol", session="ses_carol")
def fragile(run: Run, folder: str) -> str:
    """Fails at its first try."""
    run.stream(["Trying. "])
    if _first_time(folder):
        raise ConnectionError("hunter2")
    return run.stream(["Done."])


@client.job
def killed(run: Run, folder: str) -> str:
    """Is killed at its first try, in the middle of a sentence."""
    with run.message() as message:
        message.write("It is ")
        if _first_time(folder):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        message.write("grey.")
    return message.text


@client.job
def endless(run: Run) -> None:
    """Goes on until it is cancelled."""
    while True:
        run.emit("custom.tick", {})
        run.sleep(0.05)


@client.job
def too_slow(run: Run) -> None:
    """Goes on with something else where its tool fails."""
    with contextlib.suppress(ToolError):
        run.tool("wait", time.sleep, 30, retries=5, backoff=0.01)
    run.stream(["Something else."])


def _first_time(folder: str) -> bool:
    mark = Path(folder) / "tried"
    before = mark.exists()
    mark.touch()
    return not before


@client.job(session="ses_no_ref")
def unopened(run: Run) -> str:
    """Has no ref."""
    return run.stream(["Done."])


@client.job(session="ses_same_id")
def daily(run: Run) -> str:
    """Is enqueued under one id each day."""
    return run.stream(["Done."])


@client.job(session="ses_months")
def monthly(run: Run, month: str) -> str:
    """A part of `yearly`."""
    return run.stream([f"Of {month}."])


def yearly() -> list[str]:
    """Calls a job for each month."""
    return [monthly(month) for month in ("May", "June", "July")]


@client.job(session="ses_months")
def yearly_too(run: Run) -> list[str]:
    """Likewise, and is a run itself."""
    made = yearly()
    run.emit("custom.made", {"months": made})
    return made


@client.job
def fails_at(run: Run, folder: str, *executions: int) -> str:
    """Fails at those of its executions, which begin with 1."""
    execution = len(list(Path(folder).iterdir())) + 1
    (Path(folder) / str(execution)).touch()
    if execution in executions:
        raise ConnectionError("Not this time.")
    return run.stream(["Done."])


@client.job
def ticks(run: Run, seconds: float) -> str:
    """Takes so long, and looks at nothing but the clock."""
    run.emit("custom.tick", {})
    time.sleep(seconds)
    return "Done."


@client.job
def returns_retry(run: Run, folder: str) -> Retry | str:
    """Asks to be tried again, once."""
    run.stream(["Trying. "])
    return Retry(max=1) if _first_time(folder) else run.stream(["Done."])


@client.job
def slow_once(run: Run, folder: str) -> str:
    """Takes for ever at its first try."""
    run.emit("custom.tick", {})
    if _first_time(folder):
        time.sleep(600)
    return run.stream(["Made."])
