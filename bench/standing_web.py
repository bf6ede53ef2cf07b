"""The web process, with a look at how long its loop stands still: `gunicorn bench.standing_web:app`."""

from bench.standing import watch
from wsgi import app

__all__ = ["app"]

watch()
