"""What the commands of `runtail` share: which server they ask, their exit codes, errors as one sentence on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from http import HTTPStatus
from typing import Concatenate, ParamSpec

import click

from app.cli.plain import printable
from app.client import Client, Refused, Unreachable
from app.errors import RuntailError

URL = "http://127.0.0.1:8000"
USER_HELP = "Act for this user of the key's tenant; the key needs the scope `write`."

EXIT_BY_STATUS = {"completed": 0, "failed": 1, "cancelled": 3}
EXIT_TROUBLE = 2
EXIT_INTERRUPTED = 130
EXIT_TOO_LATE = 1

P = ParamSpec("P")


class Trouble(click.ClickException):
    """Ends the command with a sentence on stderr."""

    exit_code = EXIT_TROUBLE


class TooLate(click.ClickException):
    """The same, where somebody or something else came first."""

    exit_code = EXIT_TOO_LATE


@contextmanager
def explained() -> Iterator[None]:
    """Errors as sentences."""
    try:
        yield
    except Refused as error:
        if error.status == HTTPStatus.CONFLICT:
            raise TooLate(printable(error)) from error
        hint = " Give a key with --key or RUNTAIL_KEY." if error.code == "unauthorized" else ""
        raise Trouble(printable(error) + hint) from error
    except Unreachable as error:
        raise Trouble(printable(error)) from error
    except RuntailError as error:
        raise Trouble(f"{printable(error.detail)} ({error.code})") from error
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def with_client(command: Callable[Concatenate[Client, P], None]) -> Callable[..., None]:
    """Options that say which server; the command gets a client of it."""

    @click.option("--url", envvar="RUNTAIL_URL", default=URL, show_default=True, show_envvar=True, help="The server.")
    @click.option("--key", envvar="RUNTAIL_KEY", show_envvar=True, help="API key; none in development mode.")
    @click.option("--user", envvar="RUNTAIL_USER", show_envvar=True, help=USER_HELP)
    @wraps(command)
    def with_client(url: str, key: str | None, user: str | None, *args: P.args, **kwargs: P.kwargs) -> None:
        with explained(), Client(url, key, user) as client:
            command(client, *args, **kwargs)

    return with_client


def database_option(help: str, *, required: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option that names a Postgres."""
    envvar = ["RUNTAIL_DATABASE_URL", "DATABASE_URL"]
    return click.option("--database", envvar=envvar, show_envvar=True, required=required, help=help)
