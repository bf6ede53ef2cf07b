"""The WSGI entry point: `gunicorn wsgi:app`."""

from app.config import Config
from app.factory import create_app

app = create_app(Config.from_env())
