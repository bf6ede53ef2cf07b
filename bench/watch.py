"""Looks at a worker and the stores from outside, once a second, while a scenario goes on.

Responsible for how far the archive is behind and whether the worker's heart beats. Not responsible for what runs.
"""

import json
import threading
import time
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg2
from redis import Redis

from app.storage.event_log import stream_key
from bench.report import Figures

LOOK_SECONDS = 1.0
_ARCHIVED = """
SELECT id, coalesce((SELECT max(seq) FROM run_events e WHERE e.run_id = runs.id), 0) FROM runs WHERE status = 'running'
"""


class Watch:
    """Looks from a thread, for the length of a `with` block, at all runs that are running and all heartbeats."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self._database_url = database_url
        self._redis_url = redis_url
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._over = threading.Event()
        self._beat: dict[str, tuple[int, datetime]] = {}
        self._failure: BaseException | None = None
        self.beats = 0
        self.longest_beat_s = 0.0
        self.most_behind_s = 0.0
        self.most_behind_at_s = 0.0
        self._begun = time.monotonic()
        self.looks = 0

    def figures(self) -> Figures:
        """What was seen.

        :raises Exception: what kept it from looking.
        """
        if self._failure is not None:
            raise self._failure
        found = {"archive_behind_max_s": self.most_behind_s, "archive_behind_max_at_s": self.most_behind_at_s}
        return {**found, "looks": self.looks, "heartbeats": self.beats, "heartbeat_pause_max_s": self.longest_beat_s}

    def _look(self) -> None:
        try:
            with closing(psycopg2.connect(self._database_url)) as connection, Redis.from_url(self._redis_url) as redis:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    while not self._over.wait(LOOK_SECONDS):
                        self._look_at_beats(cursor)
                        self._look_at_archive(cursor, redis)
                        self.looks += 1
        except BaseException as error:
            self._failure = error

    def _look_at_beats(self, cursor: Any) -> None:
        """By Postgres' clock: how long it took to the next beat, on average where several came between two looks."""
        cursor.execute("SELECT id, beats, seen_at, now() FROM workers")
        for worker, beats, seen_at, now in cursor.fetchall():
            known, since = self._beat.setdefault(worker, (beats, seen_at))
            new = beats - known
            pause = (seen_at - since) / new if new else now - since
            self.beats += new
            self.longest_beat_s = max(self.longest_beat_s, pause.total_seconds())
            self._beat[worker] = (beats, seen_at)

    def _look_at_archive(self, cursor: Any, redis: Any) -> None:
        """The age of the oldest event that is in Redis and not in Postgres, over all runs."""
        cursor.execute(_ARCHIVED)
        archived, now = cursor.fetchall(), datetime.now(UTC)
        with redis.pipeline(transaction=False) as all:
            for run_id, seq in archived:
                all.xrange(stream_key(run_id), min=f"({seq}-0", count=1)
            replies = all.execute()
        written = [datetime.fromisoformat(json.loads(entries[0][1][b"e"])["ts"]) for entries in replies if entries]
        behind = max([0.0, *((now - ts).total_seconds() for ts in written)])
        if behind > self.most_behind_s:
            self.most_behind_s, self.most_behind_at_s = behind, time.monotonic() - self._begun

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def peak_rss(pid: int) -> int:
    """The most resident bytes that a process has had, as the kernel remembers them."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1_024


def family_cpu(pid: int) -> float:
    """CPU seconds of a process and all its children, of those that have ended too."""
    seconds = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            seconds += sum(process.cpu_times()[:4])
    return seconds


class Cpu:
    """CPU shares of some processes since this was made; 1 is one core."""

    def __init__(self, **pids: int) -> None:
        self._pids = pids
        self._before = {name: family_cpu(pid) for name, pid in pids.items()}
        self._begun = time.monotonic()

    def shares(self) -> Figures:
        """`{name}_cpu_share` of each."""
        seconds = time.monotonic() - self._begun
        now = {name: family_cpu(pid) for name, pid in self._pids.items()}
        return {f"{name}_cpu_share": (now[name] - self._before[name]) / seconds for name in now}
