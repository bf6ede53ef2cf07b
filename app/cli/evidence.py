"""The commands that take a finished run's log as evidence: export, verify, replay.

Responsible for files, exit codes and what is said. Not responsible for the format of a file (`export`), for what a log
has to agree with (`verification`), nor for how a run looks (`render`).
"""

import math
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import click

from app.cli.export import LINE_MAX_BYTES, Broken, Checked, Sealer, check, envelopes
from app.cli.parts import EXIT_BY_STATUS, Trouble, database_option, with_client
from app.cli.plain import one_line, printable
from app.cli.render import view
from app.cli.verification import Claim, Mismatch
from app.cli.verification import verify as verify_log
from app.client import Client
from app.protocol.events import TERMINAL
from app.protocol.reducer import Envelope, Fold, initial
from app.protocol.timing import SPEED_MAX, SPEED_MIN, Timing

NAP_SECONDS = 3_600.0
"""No single sleep is longer: the times in a file are anybody's, and a sleep has a longest time."""
EXPORT_EXIT_CODES = """\b
Exit codes:
  0    it is written
  2    wrong usage, the run has not ended, or something could not be reached, read or written
  130  Ctrl-C: no file is left"""
VERIFY_EXIT_CODES = """\b
Exit codes:
  0    it is what it says
  1    it is not
  2    wrong usage, or something could not be reached or read"""
REPLAY_EXIT_CODES = """\b
Exit codes:
  0    the run completed
  1    the run failed, or the file is not what was exported
  2    wrong usage, the run has not ended, or something could not be reached or read
  3    the run was cancelled
  130  Ctrl-C"""


@click.command(epilog=EXPORT_EXIT_CODES)
@click.argument("run_id", metavar="RUN")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Not to stdout.")
@with_client
def export(client: Client, run_id: str, output: Path | None) -> None:
    """Write a finished run's log, byte for byte, with a seal as its last line. A lost server is waited for."""
    _finished(client, run_id)
    lines = _sealed_log(client, run_id)
    if output is None:
        sys.stdout.buffer.writelines(lines)
        return
    with _replaced(output) as file:
        file.writelines(lines)
    click.echo(one_line(f"{run_id} is in {output}."))


def _sealed_log(client: Client, run_id: str) -> Iterator[bytes]:
    """The lines of the file, each with its newline."""
    sealer, digest = Sealer(), ""
    with closing(client.follow_lines(run_id, on_trouble=_tell)) as lines:
        for envelope, line in lines:
            if envelope["type"] == "stream.snapshot":
                raise Trouble(f"The log of {run_id} is not whole: the server gives a snapshot in place of events.")
            if "seq" in envelope:
                sealer.add(line)
                yield line + b"\n"
            if envelope["type"] in TERMINAL:
                digest = envelope["payload"]["digest"]
    yield sealer.seal(run_id, digest) + b"\n"


def _tell(reason: str | None) -> None:
    click.echo("Connected again." if reason is None else f"{one_line(reason)} Trying again.", err=True)


@contextmanager
def _replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the name of `path` once it is whole, and is gone if it never is."""
    if os.path.exists(path) and not path.is_file():
        raise Trouble(f"{one_line(path)} is no file that could be replaced.")
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise Trouble(f"{one_line(path)} cannot be written: {error.strerror}.") from error
    finally:
        with suppress(OSError):  # it has the other name, or could not be made
            beside.unlink()


@click.command(epilog=VERIFY_EXIT_CODES)
@click.argument("log", metavar="FILE|RUN")
@database_option("URL of a Postgres to read a run from instead of the API.", required=False)
@with_client
def verify(client: Client, log: str, database: str | None) -> None:
    """Check that a log says what is claimed: of an exported FILE, without a server, or of a finished RUN.

    A file: that each line is what was exported, and that the log folds to its digest. A run: that the digest and the
    state that are stored are those of its log.
    """
    if file := _file_of(log):
        return _say(file, _checked(file))
    try:
        events, digest = _verify_archive(database, log) if database else _verify_run(client, log)
    except Mismatch as mismatch:
        raise click.ClickException(printable(mismatch)) from mismatch
    source = "Postgres" if database else "the API"
    click.echo(f"{log} is as it says: {events} events from {source}, digest {digest}.")


def _say(file: Path, checked: Checked) -> None:
    found = f"{checked.events} events of {checked.run_id}, digest {checked.digest}"
    if checked.sealed:
        return click.echo(one_line(f"{file} is what was exported: {found}."))
    about = "It has no seal: that it is whole is known from its digest alone, which does not cover every byte."
    return click.echo(one_line(f"{file} is as it says: {found}. {about}"))


def _verify_run(client: Client, run_id: str) -> tuple[int, str]:
    run = client.read(run_id)
    return verify_log(run_id, client.events(run_id), Claim(run["status"], run["digest"], run["state"]))


def _verify_archive(url: str, run_id: str) -> tuple[int, str]:
    from app.cli.storage import verify_archive  # takes as long as all the rest

    return verify_archive(url, run_id)


def _speed(_: click.Context, __: click.Parameter, speed: float) -> float:
    if math.isnan(speed):  # within every range, as comparisons go
        raise click.BadParameter("This is not a number.")
    return speed


@click.command(epilog=REPLAY_EXIT_CODES)
@click.argument("log", metavar="FILE|RUN")
@click.option(
    "--speed",
    type=click.FloatRange(SPEED_MIN, SPEED_MAX),
    callback=_speed,
    default=1.0,
    show_default=True,
    metavar="N",
    help="N times as fast as it was.",
)
@with_client
def replay(client: Client, log: str, speed: float) -> None:
    """Show a finished run as it went, with its own timing: of an exported FILE, without a server, or a RUN."""
    if file := _file_of(log):
        sys.exit(_play(_checked(file).run_id, envelopes(_lines(file)), speed))
    _finished(client, log)
    sys.exit(_play(log, client.events(log), speed))


def _play(run_id: str, events: Iterable[Envelope], speed: float) -> int:
    """Show each event when it is due; returns the exit code."""
    fold, timing, began = Fold(initial(run_id)), Timing(speed), time.monotonic()
    with view() as shown:
        for envelope in events:
            due = began + timing.due(envelope["ts"])
            while (pause := due - time.monotonic()) > 0:
                time.sleep(min(pause, NAP_SECONDS))
            try:
                with shown.still:
                    fold.apply(envelope)
            except ValueError as error:
                raise Trouble(printable(f"The log is broken: {error}.")) from error
            shown.show(envelope, fold)
    return EXIT_BY_STATUS[fold.state["status"]]


def _finished(client: Client, run_id: str) -> dict[str, Any]:
    run = client.read(run_id)
    if run["finished_at"] is None:
        raise Trouble(f"{one_line(run_id)} has not ended yet: it is {run['status']}. This takes a finished run.")
    return run


def _file_of(text: str) -> Path | None:
    """What the argument names, if that is a file: it is there, or has a path's separator, which no run's id has."""
    return Path(text) if os.sep in text or os.path.exists(text) else None


def _checked(file: Path) -> Checked:
    try:
        return check(_lines(file))
    except Broken as broken:
        raise click.ClickException(printable(f"{file}: {broken}")) from broken


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as opened:
            while line := opened.readline(LINE_MAX_BYTES + 1):
                yield line
    except OSError as error:
        raise Trouble(f"{one_line(file)} cannot be read: {error.strerror}.") from error
