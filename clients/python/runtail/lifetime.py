"""Child processes that do not outlive the process that made them, however that one ends (Linux)."""

import ctypes
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from glob import glob
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None)


def live_no_longer_than(parent: int) -> None:
    """In a child, first of all: be killed by the kernel when the parent is gone. What it starts in turn is not."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it went before the kernel was told


def adopt_orphans() -> None:
    """Let what descendants leave behind become children of this process, also the daemons that they have made."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children_of(pid: int) -> list[int]:
    """Those of all its threads, as far as the system tells (Linux)."""
    found: list[int] = []
    for children in glob(f"/proc/{pid}/task/*/children"):
        with suppress(OSError):  # the thread, or the process, has ended
            found += map(int, Path(children).read_text().split())
    return found


def end_children(spare: Iterable[int] = ()) -> None:
    """Kill every child of this process but these, and the orphans that it then adopts; not those of another user."""
    spared = set(spare)
    while children := set(children_of(os.getpid())) - spared:
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            except PermissionError:
                spared.add(child)
            except (ProcessLookupError, ChildProcessError):
                continue  # somebody has waited for it
