"""What `rq worker` does: the same report, told as it is made."""

import os

from redis import Redis
from report import make_report
from rq import Queue

from runtail.client import Runtail

queue = Queue(connection=Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
runtail = Runtail(os.environ.get("RUNTAIL_URL", "http://127.0.0.1:8000"), os.environ.get("RUNTAIL_KEY"))


def refusal(error):
    """What to tell a user, with its status, where Runtail refuses something or does not answer."""
    return ("There is no such report.", 404) if error.status == 404 else ("Please try again later.", 503)


@runtail.job
def report(run, customer):
    return make_report(customer)
