"""The folder in which the processes of one web server leave their metrics, for any of them to add up.

For gunicorn's master, before it has workers: `prometheus_client` looks for the folder when it is imported, so nothing
here may import it. Not responsible for the metrics (`app.metrics`).
"""

import os
import shutil
import tempfile
from pathlib import Path

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX = "runtail-metrics-"


def prepare() -> None:
    """Have an empty folder, and name it in the environment. One that the environment names already is taken."""
    _remove_left_over()
    named = os.environ.get(VARIABLE)
    # A master that was started by another one (USR2) inherits the name of a folder that the other one will remove.
    if not named or Path(named).name.startswith(_PREFIX):
        os.environ[VARIABLE] = tempfile.mkdtemp(prefix=_mine())
        return
    folder = Path(named)
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.db"):
        file.unlink(missing_ok=True)


def forget(pid: int) -> None:
    """A process has ended: what it had open it has no more, what it has counted stays counted."""
    for file in Path(os.environ[VARIABLE]).glob(f"gauge_live*_{pid}.db"):
        file.unlink(missing_ok=True)


def remove() -> None:
    """Remove the folder, if this process made it."""
    folder = Path(os.environ[VARIABLE])
    if folder.name.startswith(_mine()):
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left_over() -> None:
    """Remove what masters that were killed have left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)  # somebody else's is theirs to remove


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _mine() -> str:
    return f"{_PREFIX}{os.getpid()}-"
