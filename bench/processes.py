"""Child processes of a benchmark, and what the kernel says about a process.

Responsible for starting, ending and reading processes. Not responsible for what they do.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
POLL_SECONDS = 0.005
STOP_SECONDS = 15.0
HEARD_SECONDS = 20.0
LOG_TAIL = 3_000


class BenchError(Exception):
    """What keeps a benchmark from giving figures, as one sentence."""


def eventually(condition: Callable[[], T | None], seconds: float, what: str, pause: float = POLL_SECONDS) -> T:
    """The first true value of the condition.

    :param pause: seconds between two looks.
    :raises BenchError: there is none in time.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise BenchError(f"{what} did not come within {seconds:.0f} s.")
        time.sleep(pause)
    return value


class Child:
    """A process with its output in files and a pipe to its stdin; killed when its `with` block ends."""

    def __init__(
        self, name: str, command: list[str], folder: Path, env: Mapping[str, str] = os.environ, cwd: Path = ROOT
    ) -> None:
        base = folder / f"{name}-{secrets.token_hex(3)}"
        self.name, self.out, self.err = name, base.with_suffix(".out"), base.with_suffix(".err")
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.popen = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.PIPE, stdout=out, stderr=err)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.popen.poll() is not None

    def say(self, line: str) -> None:
        """Write a line to its stdin."""
        assert self.popen.stdin
        with suppress(BrokenPipeError):  # it has ended by itself; its result says why
            self.popen.stdin.write(f"{line}\n".encode())
            self.popen.stdin.flush()

    def heard(self, word: str) -> dict[str, Any] | None:
        """What a line `word {json}` of its stderr says; None: it has not come.

        :raises BenchError: the process ended without it.
        """
        over = self.ended
        for line in self.err.read_text().splitlines():
            if line.startswith(f"{word} {{"):
                said: dict[str, Any] = json.loads(line.removeprefix(word))
                return said
        if over:
            raise self.trouble(f"ended before it was {word}")
        return None

    def wait_heard(self, word: str, seconds: float = HEARD_SECONDS) -> dict[str, Any]:
        """As `heard`, but wait for it.

        :raises BenchError: it did not come.
        """
        return eventually(lambda: self.heard(word), seconds, f"`{word}` of {self.name}")

    def result(self, seconds: float) -> dict[str, Any]:
        """Wait for its end and return the JSON object on its stdout.

        :raises BenchError: it failed or did not end.
        """
        try:
            code = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self.trouble(f"did not end within {seconds:.0f} s") from None
        if code:
            raise self.trouble(f"ended with code {code}")
        result: dict[str, Any] = json.loads(self.out.read_text())
        return result

    def stop(self, number: int = signal.SIGTERM, seconds: float = STOP_SECONDS) -> float:
        """Signal it and wait; killed after so many seconds. Returns how many it took."""
        begun = time.monotonic()
        with suppress(ProcessLookupError):
            self.popen.send_signal(number)
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        return time.monotonic() - begun

    def kill(self) -> None:
        """kill -9, its children too; returns when they are gone."""
        with suppress(psutil.NoSuchProcess):
            family = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.popen.wait()

    def trouble(self, what: str) -> BenchError:
        """An error that says what it did, and its last words."""
        return BenchError(f"{self.name} {what}: {self.err.read_text()[-LOG_TAIL:].strip() or 'it left no message'}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.kill()
        if self.popen.stdin:
            with suppress(BrokenPipeError):
                self.popen.stdin.close()


def python(*arguments: str) -> list[str]:
    """The command that runs a module of this checkout."""
    return [sys.executable, *arguments]


@dataclass(frozen=True, slots=True)
class Usage:
    """Of some processes together: CPU seconds so far, resident bytes, open files."""

    cpu_s: float
    rss: int
    fds: int


def usage(pids: Iterable[int]) -> Usage:
    """What processes use now."""
    found = [psutil.Process(pid) for pid in pids]
    cpu = sum(sum(process.cpu_times()[:2]) for process in found)
    return Usage(cpu, sum(p.memory_info().rss for p in found), sum(p.num_fds() for p in found))


def ports_to(pids: Iterable[int], port: int) -> set[int]:
    """The local ports of the TCP connections that these processes have to a local port."""
    of_each = [psutil.Process(pid).net_connections("tcp") for pid in pids]
    return {c.laddr.port for found in of_each for c in found if c.raddr and c.raddr.port == port}
