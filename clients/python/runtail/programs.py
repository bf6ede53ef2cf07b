"""Programs that live no longer than the run that started them.

Each gets a session of its own, which is killed as a whole when the program ends, is interrupted, or takes too long;
when the worker is killed, the kernel kills the program (Linux; what it has started in turn goes on there).
"""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import PurePath
from typing import IO

from runtail.errors import ToolError
from runtail.lifetime import live_no_longer_than

OUTPUT_BYTES = 1_000_000
"""Kept of each of the two outputs; what comes after is read and dropped."""


INHERITED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_[A-Z]+|TZ|TERM|TMPDIR|TMP|TEMP|PWD|VIRTUAL_ENV|PYTHONPATH|PYTHONHOME"
    r"|LD_LIBRARY_PATH|SSL_CERT_FILE|SSL_CERT_DIR"
)
"""What a program gets of the worker's environment, which holds the keys of everything: an allow-list, because nobody
knows what deployments keep in theirs."""


def run_program(
    argv: Sequence[str],
    input: str | None,
    timeout_s: float | None,
    cwd: str | None,
    env: Mapping[str, str] | None,
) -> dict[str, object]:
    """Run a program to its end: {returncode, stdout, stderr, truncated}, the outputs as text.

    :param input: of its standard input.
    :param env: its whole environment; None: what is INHERITED of the worker's.
    :raises OSError: it cannot be started.
    :raises ToolError: it took longer than `timeout_s`, and was killed (`timeout`, retryable).
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        list(argv),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        cwd=cwd,
        env=inherited(os.environ) if env is None else dict(env),
        start_new_session=True,
        preexec_fn=partial(live_no_longer_than, os.getpid()),
    )
    try:
        threading.Thread(target=_feed, args=(process.stdin, (input or "").encode()), daemon=True).start()
        stdout, stderr = _Output(process.stdout), _Output(process.stderr)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            name = PurePath(argv[0]).name
            raise ToolError("timeout", f"{name} took longer than {timeout_s:g} s.", retryable=True) from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the whole session, so that no pipe stays open
        process.wait()
    return {
        "returncode": process.returncode,
        "stdout": stdout.text(),
        "stderr": stderr.text(),
        "truncated": stdout.truncated or stderr.truncated,
    }


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """What a program gets of an environment."""
    return {name: value for name, value in environ.items() if INHERITED.fullmatch(name)}


class _Output:
    """What a program writes, read as it comes, so that it never waits for us."""

    def __init__(self, pipe: IO[bytes] | None) -> None:
        self.truncated = False
        self._kept = bytearray()
        self._reader = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._reader.start()

    def text(self) -> str:
        """All of it, once the program has ended."""
        self._reader.join()
        return self._kept.decode(errors="replace")

    def _read(self, pipe: IO[bytes] | None) -> None:
        assert pipe is not None
        with pipe:
            while chunk := pipe.read1(65_536):  # type: ignore[attr-defined]  # a BufferedReader
                room = OUTPUT_BYTES - len(self._kept)
                self._kept += chunk[:room]
                self.truncated = self.truncated or len(chunk) > room


def _feed(pipe: IO[bytes], data: bytes) -> None:
    with suppress(BrokenPipeError), pipe:  # a program need not read its input
        pipe.write(data)
