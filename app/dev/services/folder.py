"""The data folder of an embedded installation: who owns it, what is in it, what was left running in it.

    postgres/  redis/   the servers' own files       password    of both servers, private
    logs/NAME.log       what each process printed    dev.lock    held by the `runtail dev` that runs here
    pids.json           {"web": pid, "worker": pid, "isolated": pid, "redis": pid, "postgres": pid};
                        a list where several
    env                 the servers' URLs, for a shell's `. DIR/env`, while they run

Responsible for these files and for ending what an earlier, killed `runtail dev` left behind. Not responsible
for starting anything.
"""

import errno
import fcntl
import json
import os
import secrets
import shlex
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import psutil

MIN_FREE_BYTES = 100_000_000
"""Below this a start is refused: a fresh PostgreSQL takes 40 MB before its first row."""
ORPHAN_SECONDS = 4.0
"""How long what was left behind gets to stop in an orderly way before it is killed."""
POLL_SECONDS = 0.02
OWNER_VARIABLE = "RUNTAIL_DEV_DATA"
"""Set in the environment of every child to its data folder; so a pid can be told to be ours."""
POSTGRES = "postgres"
"""Its program, as the kernel names a process of it."""


PRIVATE_UMASK = 0o077
"""Of the servers: what they write is for nobody else."""


class DevError(Exception):
    """What keeps an embedded installation from starting, as one sentence for the person at the terminal."""


def disk_full(folder: Path) -> DevError:
    """The one sentence for a disk without room, wherever it was noticed."""
    return DevError(f"The disk that holds {folder} is full: free some space or choose another folder.")


def says_disk_full(output: str) -> bool:
    """Whether a server's output says so. A write that found room for its half only is told by the hint."""
    return "No space left on device" in output or "Check free disk space" in output


def main_line(output: str) -> str:
    """The line of a process' last words that says why: the last complaint, else the last line."""
    lines = output.strip().splitlines() or ["it left no message"]
    complaints = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "rror:"))]
    return (complaints or lines)[-1].strip()


@contextmanager
def os_errors_as_sentences(data: Path) -> Iterator[None]:
    """Turn what the file system refuses into a DevError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(data) from error
        reason = error.strerror or str(error)
        where = error.filename or data
        raise DevError(f"The data folder {data} cannot be used: {where}: {reason}.") from error


def prepare_folder(data: Path) -> Path:
    """Make the data folder and return its absolute path. What it and its folders hold is private; no folder above it,
    which is somebody else's, is changed.

    :raises DevError: it cannot be made or written, or its disk is nearly full.
    """
    data = data.absolute()
    with os_errors_as_sentences(data):
        data.mkdir(parents=True, exist_ok=True)
        make_private(data / "logs")
        if shutil.disk_usage(data).free < MIN_FREE_BYTES:
            raise disk_full(data)
    return data


def make_private(folder: Path) -> None:
    """Make a folder that is ours, and take from others what an earlier version had left to them.

    Started by root it can be passed through, not listed: PostgreSQL has an account of its own.
    """
    folder.mkdir(exist_ok=True)
    folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
    for below in folder.rglob("*"):
        if not below.is_symlink():
            below.chmod(0o700 if below.is_dir() else 0o600)


def open_log(data: Path, name: str) -> IO[bytes]:
    """The log of one process, to append to."""
    return open(os.open(log_path(data, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def log_path(data: Path, name: str) -> Path:
    """Where the output of one process goes."""
    return data / "logs" / f"{name}.log"


def password(data: Path) -> str:
    """The password of both servers, made at the first call: others on the machine reach loopback too."""
    path = data / "password"
    if not path.exists():
        write_private(path, secrets.token_hex(16))
    return path.read_text().strip()


def write_private(path: Path, text: str) -> None:
    """Replace a file that only its owner may read; never half written."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)


@contextmanager
def owned(data: Path) -> Iterator[None]:
    """Own the folder for the length of the block. The lock ends with the process, however that ends.

    :raises DevError: another `runtail dev` runs here.
    """
    with os_errors_as_sentences(data):
        lock = os.open(data / "dev.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(lock, data)
        with os_errors_as_sentences(data):
            os.ftruncate(lock, os.pwrite(lock, f"{os.getpid()}\n".encode(), 0))
        yield
    finally:
        os.close(lock)


def _lock(lock: int, data: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 20, 0).decode().strip() or "unknown"
        raise DevError(f"Another `runtail dev` (pid {owner}) runs on {data}: stop it first.") from None


def write_pids(data: Path, pids: Mapping[str, list[int]]) -> None:
    """Replace pids.json atomically: a reader sees the state before or after a restart, never half of it."""
    shown = {name: found[0] if len(found) == 1 else found for name, found in pids.items() if found}
    write_private(data / "pids.json", json.dumps(shown) + "\n")


def remove_pids(data: Path) -> None:
    """Nothing runs here any more."""
    (data / "pids.json").unlink(missing_ok=True)


@contextmanager
def announced(data: Path, urls: Mapping[str, str]) -> Iterator[None]:
    """Have the URLs in `env` for the length of the block, under names that only Runtail reads."""
    lines = [f"export RUNTAIL_{name}={shlex.quote(url)}\n" for name, url in urls.items()]
    with os_errors_as_sentences(data):
        write_private(data / "env", "".join(lines))
    try:
        yield
    finally:
        (data / "env").unlink(missing_ok=True)


def stop_orphans(data: Path) -> int:
    """End every process that a killed `runtail dev` left running on this folder; returns how many.

    Web and worker first: they talk to the servers while they end. Blocks for up to four times ORPHAN_SECONDS.
    """
    orphans = list(_orphans(data))
    servers = [orphan for orphan in orphans if orphan.is_server]
    pids = {orphan.process.pid for orphan in servers}
    _stop([orphan for orphan in orphans if orphan not in servers])
    # The backends go with their postmaster; a signal of their own would only make it report a crash.
    _stop([orphan for orphan in servers if orphan.parent not in pids])
    return len(orphans)


def wait_until_gone(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until processes that may be nobody's children any more have ended; returns those that have not.

    A zombie counts as ended (psutil.wait_procs would wait for its new parent, which may never reap it).
    """
    deadline = time.monotonic() + seconds
    alive = list(processes)
    while (alive := [process for process in alive if _is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return alive


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class _Orphan(NamedTuple):
    process: psutil.Process
    is_server: bool
    """A server works in a folder of its own below the data folder; web and workers do not."""
    stop_signal: signal.Signals
    parent: int


def _orphans(data: Path) -> Iterator[_Orphan]:
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        # Somebody else's, or just gone: not ours to end.
        with suppress(psutil.AccessDenied, psutil.NoSuchProcess):
            is_server = Path(process.cwd()).parent == data
            is_postgres = process.name() == POSTGRES
            # PostgreSQL's backends write their title over their environment, which tells whose the others are.
            if process.environ().get(OWNER_VARIABLE) == str(data) or (is_server and is_postgres):
                stop_signal = signal.SIGINT if is_postgres else signal.SIGTERM
                yield _Orphan(process, is_server, stop_signal, process.ppid())


def _stop(orphans: list[_Orphan]) -> None:
    for orphan in orphans:
        _signal(orphan.process, orphan.stop_signal)
    alive = wait_until_gone([orphan.process for orphan in orphans], ORPHAN_SECONDS)
    for process in alive:
        _signal(process, signal.SIGKILL)
    wait_until_gone(alive, ORPHAN_SECONDS)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):  # it ended by itself
        # psutil compares the start time first: never another process under a reused pid.
        process.send_signal(number)
