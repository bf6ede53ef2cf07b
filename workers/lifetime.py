"""Child processes that do not outlive the process that made them, however that one ends (Linux)."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def live_no_longer_than(parent: int) -> None:
    """In a child, first of all: be killed by the kernel when the parent is gone. What it starts in turn is not."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it went before the kernel was told
