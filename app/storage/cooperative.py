"""psycopg2 under gevent: a query lets the other greenlets run, and none waits for ever for a server that is gone."""

from functools import partial

from psycogreen.gevent import gevent_wait_callback
from psycopg2.extensions import set_wait_callback

SILENCE_SECONDS = 30
"""Longest silence of Postgres inside one statement, or while connecting; then TimeoutError.

libpq's own limits do not hold here: with a wait callback it is the callback that waits.
"""


def make_psycopg_cooperative() -> None:
    """For a process that gevent has patched; before its first connection."""
    set_wait_callback(partial(gevent_wait_callback, timeout=SILENCE_SECONDS))
