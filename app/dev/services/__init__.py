"""Real PostgreSQL and Redis from pip wheels, under one data folder: what development and the tests run on.

A deployment uses none of this: it has DATABASE_URL and REDIS_URL.
"""

from app.dev.services.embedded import EmbeddedServices
from app.dev.services.folder import DevError

__all__ = ["DevError", "EmbeddedServices"]
