"""`gunicorn wsgi:app` finds its settings here: those of the package, with which `runtail dev` runs anywhere."""

from app.gunicorn_settings import *  # noqa: F403
