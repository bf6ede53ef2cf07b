"""Tasks of Celery, of a module such as an application has it."""

import os
from pathlib import Path
from typing import Any

from celery import Celery, current_task

from runtail import Run
from runtail.client import Runtail

client = Runtail(os.environ.get("RUNTAIL_URL", ""), beat_seconds=0.1)
app = Celery("tasks", broker=os.environ.get("REDIS_URL"))
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    beat_schedule={
        "reports": {
            "task": "tests.client.tasks.report",
            "schedule": 1.0,
            "args": ["May"],
            "kwargs": {"ref": os.environ.get("BEAT_REF")},
        }
    },
)


def again(error: BaseException) -> bool:
    """Whether Celery will call the task again."""
    return isinstance(error, ConnectionError) and current_task.request.retries < current_task.max_retries


@app.task
@client.job
def report(run: Run, month: str) -> str:
    """Succeeds."""
    return run.stream([f"A report on {month}."])


@app.task(autoretry_for=(ConnectionError,), max_retries=2, retry_backoff=False, default_retry_delay=1, acks_late=True)
@client.job(retried=again, session="ses_fragile")
def fragile(run: Run, folder: str) -> str:
    """Fails at its first try."""
    return _fragile(run, folder)


@app.task(autoretry_for=(ConnectionError,), max_retries=2, retry_backoff=False, default_retry_delay=1)
@client.job(session="ses_unaware")
def unaware(run: Run, folder: str) -> str:
    """As `fragile`, but does not say that it is tried again."""
    return _fragile(run, folder)


def _fragile(run: Run, folder: str) -> Any:
    tries = len(list(Path(folder).iterdir())) + 1
    (Path(folder) / str(tries)).touch()
    if tries == 1:
        raise ConnectionError("Not this time.")
    (Path(folder) / "done").touch()
    return run.stream(["Done."])
