"""Reads the streams of many runs as they grow: a tail for scenarios, and a process that measures how late events are.

Responsible for the moment at which an event is in Redis, as seen by a reader. Not responsible for who appends.
"""

import argparse
import json
import re
import select
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from redis import Redis

from app.storage.event_log import meta_key, stream_key
from app.storage.redis_connections import one_connection
from bench.quantiles import quantiles

POLL_SECONDS = 0.005
"""Between two looks at all streams. What was appended in between is seen so much later at most."""
SOCKET_SECONDS = 10.0
STAMP = re.compile(rb"@(\d+)@")


class Arrived(NamedTuple):
    """An event that has just been seen."""

    run_id: str
    seq: int
    type: bytes
    text: bytes


class Tail:
    """What comes after the heads that the runs have now. Counts seqs that are missing."""

    def __init__(self, url: str, run_ids: Sequence[str]) -> None:
        self._connection = one_connection(url, SOCKET_SECONDS)
        self._run_of = {stream_key(run_id).encode(): run_id for run_id in run_ids}
        self._cursors = dict(zip(self._run_of, _heads(url, run_ids), strict=True))
        self.gaps = 0

    def read(self) -> list[Arrived]:
        """What has come since the last call; does not wait for anything."""
        cursors = [f"{seq}-0" for seq in self._cursors.values()]
        self._connection.send_command("XREAD", "STREAMS", *self._cursors, *cursors)
        reply = self._connection.read_response() or []
        return [self._arrived(key, entry) for key, entries in reply for entry in entries]

    def _arrived(self, key: bytes, entry: tuple[bytes, list[bytes]]) -> Arrived:
        seq = int(entry[0].partition(b"-")[0])
        fields = dict(zip(entry[1][::2], entry[1][1::2], strict=True))
        self.gaps += seq - self._cursors[key] - 1
        self._cursors[key] = seq
        return Arrived(self._run_of[key], seq, fields[b"t"], fields[b"e"])

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()


def _heads(url: str, run_ids: Sequence[str]) -> Iterator[int]:
    with Redis.from_url(url) as redis, redis.pipeline(transaction=False) as all:
        for run_id in run_ids:
            all.hget(meta_key(run_id), "head")
        yield from (int(head or 0) for head in all.execute())


def measure(tail: Tail) -> dict[str, object]:
    """Until a line, or the end, comes on stdin: how long after its stamp each piece of text was in its stream."""
    begun, late, looked = time.monotonic_ns(), array("d"), time.monotonic()
    events, slowest = 0, 0.0
    while not select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
        arrived, now = tail.read(), time.monotonic_ns()
        slowest, looked = max(slowest, time.monotonic() - looked), time.monotonic()
        events += len(arrived)
        stamps = (int(stamp) for event in arrived for stamp in STAMP.findall(event.text))
        late.extend((now - stamp) / 1e6 for stamp in stamps if stamp > begun)
    seconds = (time.monotonic_ns() - begun) / 1e9
    found = {"events": events, "gaps": tail.gaps, "texts": len(late), "slowest_look_ms": slowest * 1_000}
    return {**found, "seconds": seconds, **quantiles("latency", late)}


def main() -> None:
    """Measure, and report on stdout as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--runs", type=Path, required=True, help="a file with one run id a line")
    options = parser.parse_args()
    with closing(Tail(options.url, options.runs.read_text().split())) as tail:
        print(f'begun {{"ns": {time.monotonic_ns()}}}', file=sys.stderr, flush=True)
        print(json.dumps(measure(tail)))


if __name__ == "__main__":
    main()
