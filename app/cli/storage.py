"""The commands that speak to the storage itself, past any server: keys, retention, migrate; and what verify reads."""

from collections.abc import Iterator
from contextlib import closing

import click

from app.cli.parts import Trouble, database_option, explained
from app.cli.plain import one_line
from app.cli.retention import purge
from app.cli.verification import Claim, verify
from app.config import Config
from app.protocol.reducer import Envelope
from app.storage.run_store import Database, Principal, Registry, RunStore
from app.storage.run_store import migrate as migrate_database
from app.wiring import Services

KEY_DAYS_MAX = 36_500
LOG_PAGE = 1_000


@click.group()
def keys() -> None:
    """API keys."""


@keys.command("create")
@click.option("--tenant", required=True, help="Whose runs the key reaches: those of this tenant's user.")
@click.option("--user", required=True)
@click.option("--admin", is_flag=True, help="The key may administer.")
@click.option("--write", is_flag=True, help="The key may start external runs, and act for any user of the tenant.")
@click.option("--days", type=click.IntRange(1, KEY_DAYS_MAX), metavar="N", help="It expires after N days.")
@database_option("URL of the Postgres.", required=True)
def create_key(tenant: str, user: str, admin: bool, write: bool, days: int | None, database: str) -> None:
    """Make an API key and print it. It is stored as a hash only, so this is the one time that it can be read."""
    with explained(), closing(Database(database, pool_size=1)) as opened:
        click.echo(Registry(opened).create_key(Principal(tenant, user, admin, write), days))


@keys.command("list")
@database_option("URL of the Postgres.", required=True)
def list_keys(database: str) -> None:
    """List the keys: id, tenant, user, scopes, when made, when it expires. A key is `rt_ID_…`."""
    with explained(), closing(Database(database, pool_size=1)) as opened:
        for key in Registry(opened).list_keys():
            scopes = ",".join(name for name, has in (("admin", key.admin), ("write", key.writer)) if has) or "-"
            expires = key.expires_at.isoformat(timespec="seconds") if key.expires_at else "never"
            made = key.created_at.isoformat(timespec="seconds")
            click.echo(one_line(f"{key.id} {key.tenant_id} {key.user_id} {scopes} made {made} expires {expires}"))


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@database_option("URL of the Postgres.", required=True)
def revoke_key(key_id: str, database: str) -> None:
    """Remove the key with this ID. Within 10 s it opens nothing any more, and its open windows have ended."""
    with explained(), closing(Database(database, pool_size=1)) as opened:
        if not Registry(opened).revoke_key(key_id):
            raise Trouble(f"There is no key {one_line(key_id)!r}; `runtail keys list` shows the ids.")
    click.echo(f"{key_id} is revoked.")


@click.command()
@click.option("--days", type=click.IntRange(1), metavar="N", help="In place of RUN_RETENTION_DAYS.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
def retention(days: int | None, dry_run: bool) -> None:
    """Remove the runs that ended more than N days ago from DATABASE_URL and REDIS_URL, as workers do by themselves."""
    with explained(), closing(Services.for_worker(Config.from_env())) as services:
        for line in purge(services, days, dry_run=dry_run):
            click.echo(line)


@click.command()
def migrate() -> None:
    """Bring the database of DATABASE_URL to the current schema."""
    with explained():
        migrate_database(Config.from_env().database_url)


def verify_archive(url: str, run_id: str) -> tuple[int, str]:
    """Check a finished run of that Postgres. Returns the number of its events and the digest.

    :raises Mismatch: as `verify`.
    """
    with closing(Database(url, pool_size=1)) as database:
        store = RunStore(database)
        run = store.get(run_id)
        if run is None:
            raise Trouble(f"There is no run {run_id!r} in the database.")
        return verify(run_id, _archive(store, run_id), Claim(run.status, run.digest, run.state))


def _archive(store: RunStore, run_id: str) -> Iterator[Envelope]:
    seq = 0
    while events := store.events(run_id, seq, LOG_PAGE):
        yield from (event.envelope() for event in events)
        seq = events[-1].seq
