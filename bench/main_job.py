"""Figures of the main job, taken from a running server: `make run`, then `.venv/bin/python bench/main_job.py`.

first    POST → first event, and → run.started, on the client; milliseconds
cancel   POST cancel of a running run → its answer, which comes after the terminal event; milliseconds
many     N `support` runs at once against one; seconds and ratio
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

FIRST_RUNS = 100
CANCEL_RUNS = 50
MANY = 100
QUESTION = {"message": "Where is order 48291?"}


def start(http: httpx.Client, agent: str, input: dict[str, Any]) -> str:
    """The id of a new run."""
    answer = http.post("/runs", json={"agent": agent, "input": input}).raise_for_status()
    run_id: str = answer.json()["run_id"]
    return run_id


def follow(http: httpx.Client, run_id: str) -> Iterator[dict[str, Any]]:
    """The run's events as they come, to the end."""
    headers = {"Accept": "application/x-ndjson"}
    with http.stream("GET", f"/runs/{run_id}/events", headers=headers, timeout=60) as window:
        yield from (json.loads(line) for line in window.iter_lines() if line)


def first(http: httpx.Client) -> dict[str, list[float]]:
    """Milliseconds from POST to the first event, and to run.started."""
    figures: dict[str, list[float]] = {"run.created": [], "run.started": []}
    for _ in range(FIRST_RUNS):
        posted = time.monotonic()
        for event in follow(http, start(http, "emit", {"count": 1})):
            if event["type"] in figures:
                figures[event["type"]].append((time.monotonic() - posted) * 1_000)
    return figures


def cancel(http: httpx.Client) -> list[float]:
    """Milliseconds that a cancel of a running run takes."""
    figures = []
    for _ in range(CANCEL_RUNS):
        run_id = start(http, "support", {**QUESTION, "latency_scale": 10})
        next(event for event in follow(http, run_id) if event["type"] == "tool.started")
        asked = time.monotonic()
        answer = http.post(f"/runs/{run_id}/cancel")
        figures.append((time.monotonic() - asked) * 1_000)
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "cancelled", answer.text
    return figures


def many(http: httpx.Client, count: int) -> float:
    """Seconds from the first POST until the last of `count` support runs has delivered its end to a window."""

    def run(_: int) -> str:
        *_, last = follow(http, start(http, "support", QUESTION))
        kind: str = last["type"]
        return kind

    began = time.monotonic()
    with ThreadPoolExecutor(count) as pool:
        assert set(pool.map(run, range(count))) == {"run.completed"}
    return time.monotonic() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=parser.parse_args().url, limits=limits, timeout=30) as http:
        for kind, figures in {**first(http), "cancel": cancel(http)}.items():
            p50, p95 = statistics.median(figures), statistics.quantiles(figures, n=20)[-1]
            print(f"{kind:12} p50 {p50:7.1f} ms   p95 {p95:7.1f} ms   n {len(figures)}")
        one, together = many(http, 1), many(http, MANY)
        print(f"{'support':12} one {one:.2f} s   {MANY} at once {together:.2f} s   ratio {together / one:.2f}")


if __name__ == "__main__":
    main()
