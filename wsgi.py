"""The WSGI entry point of a checkout: `gunicorn wsgi:app`."""

from app.wsgi import app

__all__ = ["app"]
