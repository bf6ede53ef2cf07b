"""The benchmarks measure what they say: every scenario at toy size, and a load client that sees a wrong server."""

import dataclasses
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.cli import main as cli
from app.cli.parts import EXIT_TROUBLE
from app.protocol.events import Event
from app.storage.run_store import BYTES, CONTAINERS, KEPT_BYTES_MAX, KEPT_CONTAINERS_MAX, KEPT_MAX
from app.verbs.external_payloads import kept_of
from bench import report
from bench.load import SOURCE, Load, Windows, add_up, build
from bench.pacing import Pace
from bench.processes import BenchError, Child, eventually
from bench.quantiles import quantiles
from bench.report import Result
from bench.scenarios import SCENARIOS, Scenario
from bench.scenarios.approval import Approval
from bench.scenarios.cancel import Cancel
from bench.scenarios.crowd import Crowd
from bench.scenarios.delivery import Fanout, Wide
from bench.scenarios.feed import FeedBeside
from bench.scenarios.first_event import FirstEvent
from bench.scenarios.memory import Memory
from bench.scenarios.outage import RedisRestart, Sigterm, Storm
from bench.scenarios.replay import Replay
from bench.scenarios.short_runs import ShortRuns
from bench.scenarios.slow import Slow
from bench.scenarios.standstill import ROUTES, Standstill
from bench.scenarios.streaming import Streaming
from bench.scenarios.takeover import Takeover
from bench.scenarios.waiting import Waiting
from bench.scenarios.websockets import WebSockets
from bench.scenarios.writers import WRITELOAD, Log, Writers, judge, latency_limits
from bench.servers import BASELINES, WrittenInC, WrittenInPython
from bench.shapes import SHAPES, batches
from bench.stage import Stage
from tests.harness import ROOT
from tests.programs import needed

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


@pytest.fixture(scope="module")
def compiler() -> None:
    """A gcc for the load client. Where there is none its tests are skipped, except in CI, where they fail."""
    needed("gcc")


@pytest.fixture(scope="module")
def stage(compiler: None) -> Iterator[Stage]:
    """A stage for all scenarios of this module."""
    with Stage() as stage:
        yield stage


@pytest.fixture(scope="module")
def folder(compiler: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the load client is built once."""
    return tmp_path_factory.mktemp("load")


def played(stage: Stage, scenario: Scenario) -> dict[str, Any]:
    """What the scenario says, as its JSON has it."""
    result = scenario.run(stage)
    parameters = dataclasses.asdict(scenario)  # type: ignore[call-overload]
    name = next(name for name, kind in SCENARIOS.items() if isinstance(scenario, kind))
    written: dict[str, Any] = json.loads(json.dumps(report.document(name, parameters, result, stage.versions())))
    assert written["parameters"] == parameters
    assert written["machine"]["cores"] > 0
    assert {"python", "redis", "postgresql", "gunicorn"} <= set(written["versions"])
    return written


def undisturbed(figures: dict[str, Any], windows: int) -> None:
    """Every window came to its terminal event, with every seq once and no snapshot in the place of any."""
    assert figures["windows"] == figures["complete"] == windows
    assert not {name for name in ("gaps", "repeats", "snapshots", "control_ids", "bad_status") if figures[name]}


# The scenarios.


def test_fanout_delivers_everything_on_every_server_and_compares_them(stage: Stage) -> None:
    written = played(stage, Fanout(windows=10, rate=50, seconds=0.4))
    assert set(written["figures"]) | set(written["not_installed"]) == {"runtail", *BASELINES}
    assert {"runtail", "xread-per-client", "flask-sse"} <= set(written["figures"])
    for figures in written["figures"].values():
        assert (figures["frames"], figures["delivered"]) == (200, 1)
        assert figures["min_frames"] == figures["max_frames"] == 20
        assert figures["gaps"] == figures["repeats"] == figures["snapshots"] == 0
        assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= 1_000
    assert set(written["ratios"]) == set(written["figures"]) - {"runtail"}
    assert all(ratios["p50_ms"] > 0 for ratios in written["ratios"].values())


def test_wide_has_a_run_for_each_window(stage: Stage) -> None:
    found = played(stage, Wide(windows=20, rate=100, seconds=0.4, baselines="none", clients=2))["figures"]
    assert list(found) == ["runtail", "python-writer"]
    for figures in found.values():
        assert (figures["frames"], figures["delivered"]) == (40, 1)
        assert figures["redis_connections"] >= 2


def test_both_writers_write_the_same(stage: Stage) -> None:
    written = []
    for kind in (WrittenInC, WrittenInPython):
        runs = stage.runs(3)
        with stage.writer(stage.web(kind=kind), runs, 300, 4, 500) as writer:
            assert writer.result(10)["events"] == 12
        written.append([[plain(event) for event in stage.services.log.read(run, 0, 10)] for run in runs])
    assert written[0] == written[1]
    assert [event["seq"] for event in written[0][0]] == [1, 2, 3, 4, 5]


def plain(event: Event) -> dict[str, Any]:
    """The envelope without what two writers never have in common."""
    envelope = event.envelope()
    assert len(envelope.pop("ts")) == len("2026-06-12T12:00:01.234Z")
    assert envelope.pop("run_id")
    assert "at" not in envelope["payload"] or re.fullmatch("@[0-9]+@", envelope["payload"].pop("at"))
    return envelope


def test_replay_is_complete_from_redis_and_from_postgres(stage: Stage) -> None:
    figures = played(stage, Replay(events=600, joins=2))["figures"]["runtail"]
    for where in ("live", "finished"):
        assert figures[f"{where}_events"] == 1_200
        assert figures[f"{where}_gaps"] == figures[f"{where}_repeats"] == figures[f"{where}_snapshots"] == 0
        assert figures[f"{where}_p50_ms"] > 0


def test_storm_brings_every_client_back_to_everything(stage: Stage) -> None:
    figures = played(stage, Storm(windows=20, runs=5, rate=50, processes=1, before=0.1, outage=0.1))["figures"][
        "runtail"
    ]
    undisturbed(figures, 20)
    assert figures["broken_ends"] >= figures["windows"]
    assert figures["level_after_start_s"] > 0
    assert figures["transactions"] > 0


def test_sigterm_ends_cleanly(stage: Stage) -> None:
    figures = played(stage, Sigterm(windows=20, runs=5, rate=50, before=0.2))["figures"]["runtail"]
    undisturbed(figures, 20)
    assert figures["clean_ends"] >= 20
    assert figures["gone_s"] > 0


def test_a_restart_of_redis_loses_nothing(stage: Stage) -> None:
    scenario = RedisRestart(windows=20, runs=5, rate=50, before=0.2, outage=0.2)
    undisturbed(played(stage, scenario)["figures"]["runtail"], 20)


def test_first_event_is_before_the_workers(stage: Stage) -> None:
    figures = played(stage, FirstEvent(posts=3, warm_up=1))["figures"]["runtail"]
    assert 0 < figures["created_p50_ms"] < figures["started_p50_ms"]


def test_memory_weighs_windows_that_stay_open(stage: Stage) -> None:
    figures = played(stage, Memory(windows=50, warm_up=5, seconds=0.2, baselines="none"))["figures"]["runtail"]
    assert figures["open"] == 50
    assert 1 <= figures["files_per_window"] < 1.5
    assert figures["rss_after_mb"] >= figures["rss_before_mb"] > 0


def test_a_crowd_is_weighed_and_then_gets_an_event_each(stage: Stage) -> None:
    scenario = Crowd(windows=60, rate=100, processes=2, clients=2, warm_up=10, idle_seconds=0.2)
    figures = played(stage, scenario)["figures"]["runtail"]
    assert figures["delivered"] == 1
    assert figures["complete"] == 60
    assert figures["gaps"] == figures["repeats"] == figures["snapshots"] == 0
    assert 1 <= figures["files_per_window"] < 1.5


def test_slow_readers_are_closed_and_come_back_complete(stage: Stage) -> None:
    scenario = Slow(windows=5, stalled=2, rate=100, seconds=1, lag_seconds=1, payload_bytes=8_000, pairs=1, warm_up=0)
    figures = played(stage, scenario)["figures"]["runtail"]
    assert figures["stalled"] == figures["stalled_closed"] == figures["complete"] == 2
    assert figures["gaps"] == figures["repeats"] == figures["snapshots"] == 0
    assert figures["delivered"] == 1


def test_short_runs_are_started_and_executed_and_weighed_against_an_empty_job(stage: Stage) -> None:
    document = played(stage, ShortRuns(runs=20, warm_up=4))
    figures = document["figures"]["runtail"]
    assert all(figures[f"{part}_per_s"] > 0 for part in ("start", "execute"))
    ratio = figures["execute_worker_cpu_ms"] / document["figures"]["SimpleWorker"]["execute_worker_cpu_ms"]
    assert figures["execute_worker_cpu_by_empty_job"] == pytest.approx(ratio)


def test_websockets_are_weighed_and_followed_beside_sse(stage: Stage) -> None:
    scenario = WebSockets(windows=20, runs=10, rate=100, seconds=0.4, idle_seconds=0.1, warm_up=2)
    figures = played(stage, scenario)["figures"]["runtail"]
    for kind in ("sse", "websocket"):
        assert figures[f"{kind}_frames"] == 80
        assert figures[f"{kind}_missing"] == figures[f"{kind}_gaps"] == figures[f"{kind}_repeats"] == 0
        assert 1 <= figures[f"{kind}_files_per_window"] < 1.5
        assert 0 < figures[f"{kind}_p50_ms"] <= figures[f"{kind}_p99_ms"]
    assert figures["websocket_odd_frames"] == 0


def test_a_feed_shows_its_sample_beside_windows_that_get_everything(stage: Stage) -> None:
    scenario = FeedBeside(windows=20, rate=500, seconds=2, sample=0.5, pairs=1)
    figures = played(stage, scenario)["figures"]["runtail"]
    assert figures["missing"] == figures["gaps"] == figures["repeats"] == figures["feed_dropped"] == 0
    assert 0.4 < figures["share_shown"] < 0.6
    assert figures["p99_ratio"] > 0


def test_a_baseline_that_is_none_is_refused(stage: Stage) -> None:
    with pytest.raises(BenchError, match="flask-sse, nchan, not sidekiq"):
        Fanout(baselines="sidekiq").run(stage)


# The scenarios of the writing side.


def test_streaming_runs_are_seen_in_redis_and_in_the_archive(stage: Stage) -> None:
    written = played(stage, Streaming(runs=3, per_run=20, seconds=2))
    figures = written["figures"]["runtail"]
    assert figures["lost_runs"] == figures["gaps"] == 0
    assert figures["texts_per_s"] > 0
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p99_ms"] <= figures["latency_max_ms"]
    assert figures["looks"] >= 1
    assert figures["worker_rss_peak_mb"] > 10
    assert written["limits"]["latency_p99_ms"] == 150


def test_cancelled_runs_end_and_hang_up_and_the_others_go_on(stage: Stage) -> None:
    figures = played(stage, Cancel(streaming=2, per_run=20, victims=4))["figures"]["runtail"]
    assert figures["still_streaming"] == 2
    assert min(figures[f"{what}_p50_ms"] for what in ("streaming_end", "silent_end", "silent_closed", "answer")) > 0


def test_decided_runs_are_resumed_before_their_agents_go_on(stage: Stage) -> None:
    figures = played(stage, Approval(decisions=2, warm_up=0))["figures"]["runtail"]
    assert 0 < figures["resumed_p50_ms"] < figures["went_on_p50_ms"]


def test_waiting_runs_leave_nothing_in_the_worker(stage: Stage) -> None:
    scenario = Waiting(runs=6, seconds=0.5, decisions=2, clients=2, warm_up=4)
    figures = played(stage, scenario)["figures"]["runtail"]
    assert figures["greenlets_more"] == figures["job_hashes_more"] == figures["owned_runs_after"] == 0
    assert figures["executions_after"] == 1
    assert figures["resumed_p50_ms"] > 0


def test_standstills_are_told_of_both_processes_and_every_way_to_read(stage: Stage) -> None:
    figures = played(stage, Standstill(shapes="items,agent", share=0.01))["figures"]["runtail"]
    for process in ("web", "worker"):
        for what in ("fill", "run_live", "end", "lost", *ROUTES):
            assert 0 <= figures[f"{process}_items_{what}_ms"] <= figures[f"{process}_max_ms"]
    assert figures["web_items_end_ms"] > 0
    assert figures["worker_agent_fill_and_end_ms"] > 0


def test_every_shape_is_about_as_large_as_a_run_may_be() -> None:
    for shape in SHAPES:
        whole = [json.loads(line) for body in batches(shape, 1) for line in body.splitlines()]
        kept = kept_of([(event["type"], event["payload"]) for event in whole])
        assert all(kept[kind] <= KEPT_MAX for kind in kept if kind not in (BYTES, CONTAINERS))
        largest = max(kept[BYTES] / KEPT_BYTES_MAX, kept[CONTAINERS] / KEPT_CONTAINERS_MAX)
        assert shape == "custom" or 0.8 < largest <= 1, shape


@pytest.mark.parametrize(
    ("nothing_ms", "commit_ms", "most_ms"), [(0.2, 1, 3.2), (0.3, 2, 5), (0.31, 2, 6.31), (1, 1, 4), (None, 1, 3)]
)
def test_an_append_may_take_a_request_and_three_commits_and_5_ms_on_a_fast_machine(
    nothing_ms: float | None, commit_ms: float, most_ms: float
) -> None:
    nothing, committed = {"p50_ms": nothing_ms, "p99_ms": 9}, {"p50_ms": commit_ms, "p99_ms": 4}
    assert latency_limits(nothing, committed) == {"p50_ms": pytest.approx(most_ms), "p99_ms": 21}


def test_external_writers_lose_nothing(stage: Stage) -> None:
    written = played(stage, Writers(writers=4, rate=200, seconds=2, processes=1))
    figures = written["figures"]["runtail"]
    assert figures["appends"] == written["figures"]["healthz"]["appends"] == 400
    assert {name: figures[name] for name in ("lost", "doubled", "out_of_order", "unfinished", "unverified")} == {
        "lost": 0,
        "doubled": 0,
        "out_of_order": 0,
        "unfinished": 0,
        "unverified": 0,
    }
    assert figures["repeats"] == 40
    assert figures["again_new"] + figures["again_known"] == figures["cut_at_once"] + figures["cut_unread"] > 0
    assert written["ratios"]["healthz"]["p50_ms"] > 0


def test_every_run_of_a_killed_worker_is_taken_over(stage: Stage) -> None:
    figures = played(stage, Takeover(runs=2, rounds=1))["figures"]["runtail"]
    assert (figures["runs"], figures["not_taken_over"]) == (2, 0)
    assert figures["takeover_p50_ms"] > 0


# The load client.


@contextmanager
def serving(*answers: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server that gives each connection in turn one of these answers and closes it; its port, what it was asked."""
    asked: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        for answer in answers:
            with listener.accept()[0] as connection:
                asked.append(connection.recv(65_536))
                connection.sendall(answer)

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield listener.getsockname()[1], asked
        thread.join(10)
        assert not thread.is_alive()


def frames(*seqs: int, type: str = "custom.tick") -> bytes:
    """Events as one chunk."""
    text = b"".join(b'id: %d\nevent: %b\ndata: {"seq":%d}\n\n' % (seq, type.encode(), seq) for seq in seqs)
    return b"%x\r\n%b\r\n" % (len(text), text)


def watched(port: int, folder: Path, **more: Any) -> dict[str, Any]:
    """What the load client counted on one window."""
    with Load(Windows(port, ["/"], 1, seconds=5, **more), folder) as load:
        return load.result()


def one_window(answers: Sequence[bytes], folder: Path, **more: Any) -> dict[str, Any]:
    """What the load client counted of such a server."""
    with serving(*answers) as (port, _):
        return watched(port, folder, **more)


@pytest.mark.parametrize(
    ("seqs", "gaps", "repeats"),
    [((1, 2, 3), 0, 0), ((1, 2, 5), 2, 0), ((1, 2, 2, 3), 0, 1), ((2, 3), 1, 0), ((1, 3, 2), 1, 1)],
)
def test_the_load_client_sees_gaps_and_repeats(seqs: Sequence[int], gaps: int, repeats: int, folder: Path) -> None:
    found = one_window([HEAD + frames(*seqs) + END], folder, since=0)
    assert (found["gaps"], found["repeats"], found["events"]) == (gaps, repeats, len(seqs))
    assert found["incomplete"] == [f"/ after {max(seqs)}"]


def test_a_snapshot_sets_the_cursor_and_is_counted(folder: Path) -> None:
    answer = HEAD + frames(1) + frames(7, type="stream.snapshot") + frames(8, type="run.completed") + END
    found = one_window([answer], folder, since=0)
    assert (found["snapshots"], found["gaps"], found["repeats"], found["complete"]) == (1, 0, 0, 1)


@pytest.mark.parametrize(("ending", "clean", "broken"), [(END, 1, 0), (b"", 0, 1), (b"0\r\n", 0, 1), (b"5\r\n:", 0, 1)])
def test_only_the_terminator_is_a_clean_end(ending: bytes, clean: int, broken: int, folder: Path) -> None:
    found = one_window([HEAD + frames(1) + ending], folder, since=0)
    assert (found["clean_ends"], found["broken_ends"]) == (clean, broken)


def test_a_close_is_the_clean_end_of_a_body_without_chunks(folder: Path) -> None:
    found = one_window([b"HTTP/1.0 200 OK\r\n\r\nid: 1\ndata: {}\n\n"], folder, since=0)
    assert (found["events"], found["clean_ends"], found["broken_ends"]) == (1, 1, 0)


def test_a_frame_may_come_in_any_pieces(folder: Path) -> None:
    text = b"id: 1\nevent: custom.tick\r\ndata: {}\n\n:\nid: 2\nevent: run.failed\ndata: {}\n\n"
    pieces = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in text)
    found = one_window([HEAD + pieces + END], folder, since=0)
    assert (found["events"], found["terminal"], found["heartbeats"], found["gaps"]) == (2, 1, 1, 0)


def test_it_comes_back_with_its_cursor_until_the_run_has_ended(folder: Path) -> None:
    first, second = HEAD + b"9\r\nretry: 1\n\r\n" + frames(1, 2), HEAD + frames(3) + END
    last = b"HTTP/1.1 204 No Content\r\n\r\n"
    with serving(first, second, last) as (port, asked):
        found = watched(port, folder, since=0, reconnect=True)
    assert (found["opens"], found["no_content"], found["complete"], found["max_seq"]) == (2, 1, 1, 3)
    cursors = [line for request in asked for line in request.split(b"\r\n") if line.startswith(b"Last-Event-ID")]
    assert cursors == [b"Last-Event-ID: 0", b"Last-Event-ID: 2", b"Last-Event-ID: 3"]


# The load client's WebSockets.

UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def text_frame(text: bytes) -> bytes:
    """A text frame as a server sends it."""
    size = len(text)
    length = (
        bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 65_536 else b"\x7f" + size.to_bytes(8)
    )
    return b"\x81" + length + text


def messages(*seqs: int, type: str = "custom.tick", pad: int = 0) -> bytes:
    """Events as text frames."""
    payload = b'{"seq":99,"pad":"%b"}' % (b"x" * pad)
    return b"".join(
        text_frame(b'{"v":1,"seq":%d,"type":"%b","payload":%b}' % (seq, type.encode(), payload)) for seq in seqs
    )


def closing_frame(code: int) -> bytes:
    """A close frame."""
    return b"\x88\x02" + code.to_bytes(2)


@pytest.mark.parametrize("pad", [0, 200, 70_000])
def test_a_websocket_shows_gaps_and_repeats_whatever_the_size_of_its_frames(pad: int, folder: Path) -> None:
    answer = UPGRADED + messages(1, 2, 2, 5, pad=pad) + closing_frame(1000)
    found = one_window([answer], folder, since=0, websocket=True)
    assert (found["events"], found["gaps"], found["repeats"], found["max_seq"]) == (4, 2, 1, 5)
    assert (found["clean_ends"], found["broken_ends"], found["odd_frames"]) == (1, 0, 0)


def test_a_snapshot_over_a_websocket_sets_the_cursor_and_other_control_frames_do_not(folder: Path) -> None:
    snapshot = text_frame(b'{"v":1,"type":"stream.snapshot","payload":{"seq":7,"state":{}}}')
    answer = text_frame(b'{"v":1,"type":"stream.answer","payload":{"seq":40}}')
    stream = UPGRADED + messages(1) + snapshot + answer + messages(8, type="run.completed") + closing_frame(1000)
    found = one_window([stream], folder, since=0, websocket=True)
    assert (found["snapshots"], found["controls"], found["gaps"], found["repeats"], found["complete"]) == (
        1,
        1,
        0,
        0,
        1,
    )


@pytest.mark.parametrize(("code", "clean", "broken"), [(1001, 1, 0), (1012, 1, 0), (1013, 0, 1), (None, 0, 1)])
def test_a_websocket_ends_cleanly_by_some_codes_only(code: int | None, clean: int, broken: int, folder: Path) -> None:
    answer = UPGRADED + messages(1) + (b"" if code is None else closing_frame(code))
    found = one_window([answer], folder, since=0, websocket=True)
    assert (found["clean_ends"], found["broken_ends"]) == (clean, broken)


@pytest.mark.parametrize("frame", [b"\x01\x02{}", b"\xc1\x02{}", b"\x81\x820000{}", b"\x82\x02{}"])
def test_frames_in_parts_compressed_masked_or_binary_are_odd(frame: bytes, folder: Path) -> None:
    found = one_window([UPGRADED + frame + messages(1)], folder, since=0, websocket=True)
    assert (found["odd_frames"], found["events"]) == (1, 1)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n", UPGRADED.replace(b"s3pP", b"S3PP")])
def test_an_answer_that_is_no_handshake_opens_no_websocket(answer: bytes, folder: Path) -> None:
    with serving(answer) as (port, _), Load(Windows(port, ["/"], 1, websocket=True), folder) as load:
        assert load.result()["bad_status"] == 1


def test_a_websocket_answers_pings_and_comes_back_with_its_cursor(folder: Path) -> None:
    received: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            received.append(connection.recv(65_536))
            for byte in UPGRADED + messages(1, 2) + b"\x89\x04beat":
                connection.sendall(bytes([byte]))
            received.append(connection.recv(10, socket.MSG_WAITALL))
            connection.sendall(closing_frame(1001))
            received.append(connection.recv(8, socket.MSG_WAITALL))
        with listener.accept()[0] as connection:
            received.append(connection.recv(65_536))
            connection.sendall(UPGRADED + messages(3, type="run.completed"))

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        found = watched(listener.getsockname()[1], folder, since=0, websocket=True, reconnect=True)
        thread.join(10)
    first, pong, close, second = received
    assert first.startswith(b"GET /?since_seq=0 HTTP/1.1\r\n")
    assert second.startswith(b"GET /?since_seq=2 HTTP/1.1\r\n")
    assert (pong[:2], unmasked(pong)) == (b"\x8a\x84", b"beat")
    assert (close[:2], unmasked(close)) == (b"\x88\x82", (1001).to_bytes(2))
    assert (found["heartbeats"], found["clean_ends"], found["complete"], found["gaps"]) == (1, 1, 1, 0)


def unmasked(frame: bytes) -> bytes:
    """The payload of a short frame of a client."""
    return bytes(byte ^ frame[2 + index % 4] for index, byte in enumerate(frame[6:]))


# The writers' client.


class Taking:
    """A server that takes appends as external runs do, each connection in a thread; `forgets`: not what it took."""

    def __init__(self, *, forgets: bool = False) -> None:
        self.requests: list[tuple[int, bytes]] = []
        """Producer-Seq and the event, as they came."""
        self._forgets = forgets
        self._taken = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as requests:
            while head := list(iter(requests.readline, b"\r\n")):
                if not head[0]:
                    return
                headers = dict(line.rstrip().split(b": ", 1) for line in head[1:])
                body = requests.read(int(headers.get(b"Content-Length", 0)))
                connection.sendall(self._answer(int(headers.get(b"Producer-Seq", 0)), body))

    def _answer(self, number: int, body: bytes) -> bytes:
        with self._lock:
            self.requests.append((number, body))
            if number and number <= self._taken and not self._forgets:
                return b"HTTP/1.1 204 No Content\r\n\r\n"
            self._taken = number
        text = b'{"head":%d,"producer_seq":%d}' % (number + 2, number)
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)

    def close(self) -> None:
        """Take no more."""
        self._listener.close()


def appended(server: Taking, folder: Path, appends: int, *more: str) -> Child:
    """The writers' client, started with one writer."""
    targets = folder / "targets"
    targets.write_text("/runs/run_1/events rtw_secret 1\n")
    command = [str(build(WRITELOAD, folder)), f"--port={server.port}", f"--targets={targets}", f"--appends={appends}"]
    return Child("writeload", [*command, "--warm-up=0", *more], folder)


def test_the_writers_client_repeats_is_cut_and_loses_nothing(folder: Path) -> None:
    with closing(Taking()) as server, appended(server, folder, 400, "--rate=2000", "--event-bytes=150") as client:
        found = client.result(20)
    assert (found["appends"], found["repeats"], found["latency"]["count"]) == (400, 40, 396)
    assert (found["cut_at_once"], found["cut_unread"], found["cut_read"]) == (2, 2, 4)
    assert found["again_new"] + found["again_known"] == 4
    assert found["lost_connections"] == 0
    first = dict(reversed(server.requests))
    assert sorted(first) == list(range(1, 401))
    assert all(first[number] == body for number, body in server.requests), "what is sent again has the same bytes"
    assert {len(body) for body in first.values()} <= set(range(145, 155))
    assert json.loads(first[17])["payload"]["n"] == 17


def test_the_writers_client_keeps_its_pace_and_counts_what_is_late_from_when_it_was_due(folder: Path) -> None:
    with closing(Taking()) as server:
        server._lock.acquire()
        with appended(server, folder, 20, "--rate=200") as client:
            eventually(lambda: client.heard("measuring"), 10, "The first append")
            time.sleep(0.3)
            server._lock.release()
            found = client.result(20)
    assert found["latency"]["max_ms"] >= 250
    assert found["latency"]["p50_ms"] >= 150, "the appends behind the one that hung were due long before"
    assert found["held_up"] >= 15


def test_the_writers_client_can_ask_for_nothing_at_the_same_pace(folder: Path) -> None:
    with closing(Taking()) as server, appended(server, folder, 50, "--rate=1000", "--get") as client:
        found = client.result(20)
    assert (found["appends"], found["repeats"]) == (50, 5)
    assert {number for number, _ in server.requests} == {0}


def test_the_writers_client_stands_for_no_wrong_answer(folder: Path) -> None:
    wrong = pytest.raises(BenchError, match="number 5, repeated: 200")
    with closing(Taking(forgets=True)) as server, appended(server, folder, 50, "--rate=1000") as client, wrong:
        client.result(20)


def test_lost_doubled_and_displaced_appends_are_told_apart() -> None:
    def log(*numbers: int, status: str = "completed") -> Log:
        tick = {"run_id": "run_1", "type": "custom.tick", "ts": "2026-06-12T12:00:01.234Z"}
        events = [{**tick, "seq": seq, "payload": {"n": number}} for seq, number in enumerate(numbers, 1)]
        return Log({"run_id": "run_1", "status": status, "digest": None, "state": {}}, events)

    logs = [log(1, 2, 3), log(1, 3), log(1, 2, 2, 3), log(2, 1, 3, status="failed")]
    assert judge(logs, 3) == {"lost": 1, "doubled": 1, "out_of_order": 1, "unfinished": 1, "unverified": 4}


# The rest.


def test_the_sums_of_several_clients_have_the_quantiles_of_all() -> None:
    def result(pairs: list[list[int]], frames: int) -> dict[str, Any]:
        return {"frames": frames, "min_frames": frames, "latency": {"histogram": pairs, "max_ms": frames}}

    total = add_up([result([[1_000_000, 98]], 98), result([[9_000_000, 2]], 2)])
    assert (total["frames"], total["min_frames"]) == (100, 2)
    shown = {name: value for name, value in total["latency"].items() if name != "histogram"}
    assert shown == {"count": 100, "p50_ms": 1, "p95_ms": 1, "p99_ms": 9, "max_ms": 98}
    assert add_up([total]) == total


def test_a_machine_without_gcc_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match="need gcc"):
        build(SOURCE, tmp_path)


def test_a_pace_is_even_over_the_runs() -> None:
    pace = Pace(["a", "b"], rate=1e9, per_run=2)
    events = [event for turn in pace.turns(begun=0) for event in turn]
    assert events == [("a", 2), ("b", 2), ("a", 3), ("b", 3)]
    assert pace.heads() == [("a", 3), ("b", 3)]


def test_ratios_are_of_figures_that_both_have() -> None:
    result = Result({"runtail": {"x": 1.0, "y": None}, "other": {"x": 4.0, "y": 2.0}}, compare=("x", "y"))
    assert result.ratios() == {"other": {"x": 0.25}}


def test_a_limit_is_missed_by_a_figure_beyond_it_and_by_one_that_is_missing() -> None:
    result = Result({"runtail": {"x": 5, "y": 5}}, limits={"x": 5, "y": 4, "z": 1})
    assert result.missed() == ["y", "z"]


def test_quantiles_are_values_that_were_measured() -> None:
    assert quantiles("x", range(200)) == {"x_p50_ms": 100, "x_p95_ms": 190, "x_p99_ms": 198, "x_max_ms": 199}
    assert quantiles("x", [7.5]) == {"x_p50_ms": 7.5, "x_p95_ms": 7.5, "x_p99_ms": 7.5, "x_max_ms": 7.5}
    assert quantiles("x", []) == {}


def test_the_command_prints_a_table_and_writes_json(compiler: None, tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    command = [sys.executable, "-m", "app.cli", "bench", "load-client", "--windows=5", "--rate=50", "--seconds=0.2"]
    done = subprocess.run([*command, f"--json={target}"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "client_cpu_share" in done.stdout
    written = json.loads(target.read_text())
    assert (written["scenario"], written["parameters"]["windows"]) == ("load-client", 5)
    assert (written["figures"]["emitter"]["frames"], written["figures"]["emitter"]["gaps"]) == (50, 0)


def test_an_installation_without_checkout_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "CHECKOUT", tmp_path)
    done = CliRunner().invoke(cli.main, ["bench", "fanout"])
    assert done.exit_code == EXIT_TROUBLE
    assert "needs a checkout" in done.output
