"""How many bytes a server keeps, store by store.

Responsible for weighing stores. Not responsible for what is in them.
"""

from contextlib import closing

import psycopg2
import redis

from bench.peers.peer import Peer
from bench.processes import usage


def kept(peer: Peer) -> dict[str, int]:
    """Bytes in PostgreSQL, in Redis, in files of its own, and, where that is its store, in its processes' memory."""
    found = {"redis": _in_redis(peer.redis_url), "file": _in_files(peer)}
    if peer.has_database:
        found["postgresql"] = _in_postgresql(peer.database_url)
    if peer.keeps_in_memory:
        found["memory"] = usage(peer.pids()).rss
    return found


def _in_postgresql(url: str) -> int:
    """The size of the database, indexes and TOAST included, after a vacuum."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("VACUUM (ANALYZE)")
        cursor.execute("SELECT pg_database_size(current_database())")
        row = cursor.fetchone()
        assert row
        return int(row[0])


def _in_redis(url: str) -> int:
    """What MEMORY USAGE says of each key, all of its elements looked at."""
    with redis.Redis.from_url(url) as client:
        return sum(client.memory_usage(key, samples=0) or 0 for key in client.scan_iter())


def _in_files(peer: Peer) -> int:
    """Blocks that the files of its working folder take."""
    if not peer.folder.exists():
        return 0
    return sum(path.stat().st_blocks * 512 for path in peer.folder.rglob("*") if path.is_file())
