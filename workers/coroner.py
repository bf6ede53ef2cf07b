"""Finds out who ended a worker by a fatal signal (a crash in C, an abort), and says so in the worker's row.

A process that crashes can tell nobody: it only writes its stack. So a child process, forked before anything was
imported, does nothing but read the other end of a pipe. When the worker has ended, what stands there is its last stack,
or nothing. Where the whole machine or container goes away with the worker, nobody is charged.
"""

import faulthandler
import json
import os
import signal
import sys
import time

from workers.execution.named import run_in_dump

TRIES, PAUSE_SECONDS = 3, 0.5
"""To write it down: janitors call the worker lost 6 s after its last heartbeat."""


class Coroner:
    """The worker's end of the pipe."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def attend(self, database_url: str, worker_id: str) -> None:
        """From now on a fatal signal is looked into. Before agents are let in, who may not change it."""
        os.write(self._pipe, json.dumps([database_url, worker_id]).encode() + b"\n")
        faulthandler.enable(self._pipe, all_threads=False)


def appoint() -> Coroner:
    """Fork the child. To be called before threads are started, and before anything is patched."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(write)
        _serve(read)
    os.close(read)
    return Coroner(write)


def _serve(pipe: int) -> None:
    """In the child; does not return."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):  # they may be sent to every process of a container
            signal.signal(number, signal.SIG_IGN)
        with open(pipe, encoding="utf-8", errors="replace") as lines:
            about, dump = lines.readline(), lines.read()
        if dump:
            sys.stderr.write(dump)
            sys.stderr.flush()
            database_url, worker_id = json.loads(about)
            _blame(database_url, worker_id, run_in_dump(dump))
    finally:
        os._exit(0)


def _blame(database_url: str, worker_id: str, run_id: str | None) -> None:
    if run_id is None:
        return
    # Imported here: as long as the worker lives this process is to cost nothing.
    from app.errors import StoreUnavailable
    from app.storage.run_store import Beats

    for _ in range(TRIES):
        try:
            Beats(database_url, worker_id).blame(run_id)
            sys.stderr.write(f"The worker {worker_id} crashed in the agent of {run_id}, which is charged with it.\n")
            return
        except StoreUnavailable as error:
            sys.stderr.write(f"{run_id} cannot be charged. {error.detail}\n")
            time.sleep(PAUSE_SECONDS)
