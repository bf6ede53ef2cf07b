"""The web process, with something that looks how long its event loop stands still: `gunicorn tests.watched_wsgi:app`.

What it finds is answered at /standstill, and begins anew with each look. It counts the processor time of the loop's own
thread between two turns: what other processes of a busy machine take is not the loop's fault.
"""

import time
from typing import Any

import gevent

from wsgi import app as served

TICK_SECONDS = 0.002

worst = 0.0


def watch() -> None:
    """Look, for ever."""
    global worst
    before = time.thread_time()
    while True:
        gevent.sleep(TICK_SECONDS)
        now = time.thread_time()
        worst, before = max(worst, now - before), now


inner: Any = served.wsgi_app


def watched(environ: dict[str, Any], start_response: Any) -> Any:
    """The application, and one path more."""
    global worst
    if environ["PATH_INFO"] != "/standstill":
        return inner(environ, start_response)
    body, worst = str(worst).encode(), 0.0
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


served.wsgi_app = watched  # type: ignore[method-assign]
app = served
gevent.spawn(watch)
