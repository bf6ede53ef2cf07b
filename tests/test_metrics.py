"""Metrics: what they count, and that they are right under several processes. `test_auth` says who may read them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app import metrics, metrics_folder
from app.protocol.events import encode
from app.storage.event_log import Append
from app.storage.run_store import RunRecord
from tests.conftest import StackMaker
from tests.harness import ROOT, Process, Stack, eventually, pending_run
from tests.speed import here
from tests.test_docs import OPERATIONS, table

WINDOWS = 12


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    """Two web processes, and a temporary folder of their own."""
    stack = module_stack(WEB_CONCURRENCY="2")
    stack.env["TMPDIR"] = str(stack.folder)
    stack.start_web()
    return stack


def _samples(text: str) -> dict[str, float]:
    """Samples by name, with their labels where they have some."""
    return {
        sample.name + "".join(f"{{{k}={v}}}" for k, v in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _scrape(stack: Stack) -> dict[str, float]:
    with httpx.Client(base_url=stack.url) as client:  # a new connection: any process may answer
        answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain")
    return _samples(answer.text)


def _open_windows(stack: Stack) -> float:
    return _scrape(stack)["runtail_open_windows"]


@contextmanager
def _windows(stack: Stack, run: RunRecord, count: int) -> Iterator[None]:
    with ExitStack() as opened:
        client = opened.enter_context(httpx.Client(base_url=stack.url, timeout=30))
        for _ in range(count):
            window = client.stream("GET", f"/runs/{run.id}/events", headers={"Accept": "text/event-stream"})
            assert opened.enter_context(window).status_code == 200
        yield


def _every_answer(stack: Stack, windows: int) -> bool:
    """Whichever process answers."""
    return all(_open_windows(stack) == windows for _ in range(10))


# Several processes.


def test_open_windows_are_added_up_whichever_process_answers(server: Stack) -> None:
    run = pending_run(server.services)
    with _windows(server, run, WINDOWS):
        eventually(lambda: _every_answer(server, WINDOWS), what="the windows of both processes")
    eventually(lambda: _every_answer(server, 0), what="no window")


def test_the_windows_of_a_killed_process_are_not_open_any_more(server: Stack) -> None:
    run = pending_run(server.services)
    with _windows(server, run, WINDOWS):
        eventually(lambda: _every_answer(server, WINDOWS), what="the windows of both processes")
        for process in psutil.Process(server.processes[0].pid).children():
            process.kill()
        eventually(lambda: _survived(server), 20, "two new processes")


def _survived(stack: Stack) -> bool:
    try:
        return _open_windows(stack) == 0
    except httpx.TransportError:
        return False


def test_what_was_counted_stays_counted_when_its_process_is_killed(server: Stack) -> None:
    run = pending_run(server.services)
    before = _scrape(server)["runtail_snapshots_total{reason=latest}"]
    with server.http.stream("GET", f"/runs/{run.id}/events?since_seq=latest") as window:
        next(window.iter_lines())
        eventually(lambda: _scrape(server)["runtail_snapshots_total{reason=latest}"] == before + 1, what="the count")
    for process in psutil.Process(server.processes[0].pid).children():
        process.kill()
    eventually(lambda: _survived(server), 20, "two new processes")
    assert _scrape(server)["runtail_snapshots_total{reason=latest}"] == before + 1


def test_a_delivery_is_timed_from_the_moment_of_its_event(server: Stack) -> None:
    run = pending_run(server.services)
    before = _scrape(server)["runtail_delivery_seconds_count"]
    with server.http.stream("GET", f"/runs/{run.id}/events") as window:
        lines = window.iter_lines()
        assert any("run.created" in line for line in lines)
        server.services.log.append(Append(run.id, 1, [encode(run.id, 2, "custom.tick", {})]))
        assert any("custom.tick" in line for line in lines)
    eventually(lambda: _scrape(server)["runtail_delivery_seconds_count"] > before, what="the delivery")
    assert _scrape(server)["runtail_delivery_seconds_bucket{le=5.0}"] > before


def test_a_stopped_server_leaves_no_folder_behind(stack: StackMaker, tmp_path: Path) -> None:
    server = stack(TMPDIR=str(tmp_path))
    web = server.start_web()
    assert len(list(tmp_path.glob("runtail-metrics-*"))) == 1
    assert web.stop() == 0
    assert not list(tmp_path.glob("runtail-metrics-*"))


def test_what_a_killed_server_left_is_removed_by_the_next(stack: StackMaker, tmp_path: Path) -> None:
    server = stack(TMPDIR=str(tmp_path))
    master = server.start_web()
    (left,) = tmp_path.glob("runtail-metrics-*")
    workers = psutil.Process(master.pid).children()
    master.kill()
    psutil.wait_procs(workers, timeout=5)
    assert left.exists()
    server.start_web()
    (folder,) = tmp_path.glob("runtail-metrics-*")
    assert folder != left


def test_a_folder_of_ones_own_is_emptied_at_the_start_and_kept_at_the_end(stack: StackMaker, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "counter_1.db").write_bytes(b"of an earlier server")
    (folder / "notes.txt").write_text("not a metric")
    server = stack(PROMETHEUS_MULTIPROC_DIR=str(folder))
    web: Process = server.start_web()
    assert not (folder / "counter_1.db").exists()
    assert _open_windows(server) == 0
    assert list(folder.glob("counter_*.db"))
    web.stop()
    assert (folder / "notes.txt").read_text() == "not a metric"


def test_a_master_that_another_one_started_takes_a_folder_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both serve for a while, and the first removes its folder when it goes."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = tmp_path / "runtail-metrics-1-x"
    other.mkdir()
    (other / "counter_1.db").touch()
    monkeypatch.setenv(metrics_folder.VARIABLE, str(other))
    metrics_folder.prepare()
    mine = Path(os.environ[metrics_folder.VARIABLE])
    assert mine != other
    assert (other / "counter_1.db").exists()
    metrics_folder.remove()
    assert other.exists()
    assert not mine.exists()


def test_no_label_says_anything_about_a_user(server: Stack) -> None:
    run = pending_run(server.services)
    with _windows(server, run, 1):
        labels = {label for name in _scrape(server) for label in name.partition("{")[2].strip("}").split("=")[:1]}
    assert labels <= {"", "le", "reason", "code"}


def test_every_metric_is_documented_and_no_other() -> None:
    documented = {row[0].strip("`").partition("{")[0] for row in table(OPERATIONS, "Metrics")}
    families = {family.name + ("_total" if family.type == "counter" else "") for family in metrics.registry.collect()}
    assert documented == families


# What they cost, and without gunicorn.


def test_an_observation_is_cheap() -> None:
    event = encode("run_1", 1, "message.delta", {"message_id": "msg_1", "text": "x" * 200})
    costs = []
    for _ in range(5):
        begun = time.process_time()
        for _ in range(2_000):
            metrics.observe_delivery(event)
        costs.append((time.process_time() - begun) / 2_000 * 1e6)
    print(f"a delivery costs {min(costs):.1f} µs")
    assert min(costs) < here(3)


def test_an_observation_falls_into_the_first_bucket_that_holds_it() -> None:
    timing = metrics.Timing("test_seconds", "For this test.", (1, 2))
    for seconds in (0.5, 1, 1.5, 2, 3):
        timing.observe(seconds)
    timing.flush()
    timing.flush()
    value = metrics.registry.get_sample_value
    assert [value("test_seconds_bucket", {"le": le}) for le in ("1.0", "2.0", "+Inf")] == [2, 4, 5]
    assert (value("test_seconds_count"), value("test_seconds_sum")) == (5, 8)
    metrics.registry.unregister(timing._histogram)


def test_an_event_from_a_clock_that_is_ahead_took_no_time() -> None:
    before = _samples(metrics.exposition().decode())
    metrics.observe_delivery(encode("run_1", 1, "custom.tick", {}, ts="2999-01-01T00:00:00.000Z"))
    after = _samples(metrics.exposition().decode())
    first = "runtail_delivery_seconds_bucket{le=0.0005}"
    assert after[first] == before[first] + 1


def test_without_gunicorn_the_one_process_tells_its_own() -> None:
    code = "from app import metrics; metrics.REPLAYS.inc(); print(metrics.exposition().decode())"
    env = {name: value for name, value in os.environ.items() if name != metrics_folder.VARIABLE}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert _samples(done.stdout)["runtail_replays_total"] == 1
