"""Baseline of `short-runs`: RQ's SimpleWorker and jobs that do nothing. Prints the CPU of the worker per job."""

import argparse
import json
import os
import time

from redis import Redis
from rq import Queue, SimpleWorker


def nothing() -> None:
    """The job."""


def main() -> None:
    """Enqueue, then work until the queue is empty."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, required=True)
    jobs = parser.parse_args().jobs
    with Redis.from_url(os.environ["REDIS_URL"]) as redis:
        queue = Queue("empty", connection=redis)
        for _ in range(jobs):
            queue.enqueue("bench.baselines.empty_jobs.nothing")
        worker = SimpleWorker([queue], connection=redis)
        before = time.process_time()
        worker.work(burst=True, logging_level="WARNING")
        print(json.dumps({"cpu_ms": (time.process_time() - before) / jobs * 1_000}))


if __name__ == "__main__":
    main()
