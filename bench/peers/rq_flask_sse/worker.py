"""A worker that has imported its job before it forks, which spares every job the import."""

import os

import jobs  # noqa: F401
from redis import Redis
from rq import Queue, Worker

connection = Redis.from_url(os.environ["REDIS_URL"])
Worker([Queue(connection=connection)], connection=connection).work()
