"""psycopg2 under gevent: a query lets the other greenlets run, and none waits for ever for a server that is gone."""

from functools import partial

from psycogreen.gevent import gevent_wait_callback
from psycopg2.extensions import set_wait_callback

SILENCE_SECONDS = 30.0
"""Default of the longest silence of Postgres inside one statement, or while connecting; then TimeoutError.

libpq's own limits do not hold here: with a wait callback it is the callback that waits.
"""


def make_psycopg_cooperative(silence_seconds: float = SILENCE_SECONDS) -> None:
    """For a process that gevent has patched; before its first connection."""
    set_wait_callback(partial(gevent_wait_callback, timeout=silence_seconds))
