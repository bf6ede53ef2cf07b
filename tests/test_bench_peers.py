"""`runtail bench peers` counts what it says, whatever the server, and misses no peer in silence."""

import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench.peers import environments
from bench.peers.account import Account, numbers
from bench.peers.environments import Environment, NotInstalled, Venv
from bench.peers.measures import Sizes, reconnects
from bench.peers.names import KINDS, PEERS
from bench.peers.peer import Peer, Program, Run, Work
from bench.peers.wire import Frame, Parser, Request, Stream
from bench.processes import BenchError
from bench.scenarios.peers import NEVER, Peers
from bench.stage import Stage

FRAMES = b"id: 1\r\nevent: delta\r\ndata: #0# and\r\ndata: #1#\r\n\r\n: alive\n\ndata:#2#\n\nevent: odd\n\n"


# What is counted.


@pytest.mark.parametrize(
    ("seen", "lost", "doubled", "furthest"),
    [
        ([0, 1, 2, 3], 0, 0, 3),
        ([0, 3], 2, 0, 3),
        ([0, 1, 1, 2, 0, 3], 0, 2, 3),
        ([3, 2, 1, 1, 1], 1, 2, 3),
        ([], 4, 0, -1),
    ],
)
def test_lost_and_doubled_deltas_are_told_apart(seen: list[int], lost: int, doubled: int, furthest: int) -> None:
    account = Account(4)
    account.see(seen)
    assert (account.lost, account.doubled, account.furthest) == (lost, doubled, furthest)


def test_only_a_delta_beyond_all_others_is_news() -> None:
    account = Account(9)
    assert [account.see(found) for found in ([0, 1], [1], [], [0, 2])] == [True, False, False, True]


def test_a_text_may_have_several_deltas() -> None:
    assert numbers("#0# and some words #1# and some words #12") == [0, 1]


@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
def test_frames_are_the_same_however_they_arrive(size: int) -> None:
    parser = Parser()
    pieces = [FRAMES[first : first + size] for first in range(0, len(FRAMES), size)]
    found = [frame for piece in pieces for frame in parser.feed(piece)]
    assert [(frame.event, frame.id, frame.data) for frame in found] == [
        ("delta", "1", "#0# and\n#1#"),
        ("", "", "#2#"),
    ]
    assert sum(frame.characters for frame in found) == FRAMES.index(b"event: odd")


# The client that comes back, on a server that keeps a run and on one that does not.


class Handler(BaseHTTPRequestHandler):
    """Streams numbers; with `keeps` after the cursor, otherwise from where the run is by now."""

    protocol_version = "HTTP/1.1"
    keeps = True
    count = 60
    begun = 0.0

    def do_POST(self) -> None:
        """A new run."""
        type(self).begun = time.monotonic()
        self._stream(0)

    def do_GET(self) -> None:
        """The same run."""
        now = int((time.monotonic() - self.begun) * 1_000)
        self._stream(int(self.headers["Last-Event-ID"]) + 1 if self.keeps else now)

    def _stream(self, first: int) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for number in range(first, self.count):
                time.sleep(max(0.0, self.begun + number / 1_000 - time.monotonic()))
                self.wfile.write(f"id: {number}\ndata: #{number}#\n\n".encode())
            self.wfile.write(b"event: end\ndata: x\n\n")
        except OSError:
            self.close_connection = True  # the client was cut off

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Forgetful(Handler):
    """Keeps nothing."""

    keeps = False


class Local(Peer):
    """Such a server as a peer."""

    name = "local"
    as_run = not_for = resumes = "test"

    @classmethod
    def versions(cls) -> dict[str, str]:
        """None."""
        return {}

    def environment(self) -> Environment | None:
        """None."""
        return None

    def programs(self) -> Sequence[Program]:
        """None: it is in this process."""
        return ()

    def ready_path(self) -> str:
        """Not asked."""
        return "/"

    def clear(self) -> None:
        """Nothing."""

    def launch(self) -> None:
        """It runs."""

    def start(self, work: Work) -> tuple[Run, Stream]:
        """A run."""
        return Run("r"), self.open(Request("POST", "/"))

    def back(self, run: Run) -> Request:
        """By the cursor."""
        return Request("GET", "/", {"Last-Event-ID": run.cursor})

    def is_delta(self, frame: Frame) -> bool:
        """All but the end."""
        return frame.event != "end"

    def is_end(self, frame: Frame) -> bool:
        """The end."""
        return frame.event == "end"


@pytest.fixture
def serving(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Local]:
    """The peer, served by the handler that is the parameter."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), request.param)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Local(bare_stage(tmp_path), tmp_path, 1, port=server.server_port)
    server.shutdown()
    thread.join()
    server.server_close()


def bare_stage(folder: Path) -> Stage:
    """A stage without stores, for what needs none."""
    return cast(Stage, SimpleNamespace(folder=folder))


def sizes(**more: Any) -> Sizes:
    """Small ones."""
    names = Sizes.__dataclass_fields__
    return Sizes(**{**dict.fromkeys(names, 0), "events": 60, "interval_ms": 1, "cuts": 4, "rounds": 1, **more})


@pytest.mark.parametrize("serving", [Handler], indirect=True)
def test_a_server_that_keeps_a_run_loses_and_doubles_nothing(serving: Local) -> None:
    found = reconnects(serving, sizes(away_ms=5))
    assert (found["reconnect_lost_most"], found["reconnect_doubled_most"], found["reconnect_saw_the_end"]) == (0, 0, 1)


@pytest.mark.parametrize("serving", [Forgetful], indirect=True)
def test_what_a_forgetful_server_says_meanwhile_is_lost(serving: Local) -> None:
    found = reconnects(serving, sizes(away_ms=5))
    assert found["reconnect_lost_least"] > 0
    assert (found["reconnect_doubled_most"], found["reconnect_saw_the_end"]) == (0, 1)


# The peers.


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_peer_says_its_versions_its_files_and_what_it_is(kind: type[Peer]) -> None:
    assert kind.versions()
    assert all(re.match(r"[\d?]", version) for version in kind.versions().values())
    assert kind.files()
    assert all(path.stat().st_size for path in kind.files())
    assert all((kind.as_run, kind.not_for, kind.resumes))


def test_every_peers_configuration_is_named_in_the_documentation() -> None:
    documented = (Path(__file__).parent.parent / "docs" / "benchmarks.md").read_text()
    for kind in KINDS[2:]:
        assert f"bench/peers/{kind.__module__.rpartition('.')[2]}" in documented
        for name, version in kind.versions().items():
            assert name in documented, name
            assert version == "?" or version in documented or "nginx" in name, (name, version)


def test_a_peer_that_is_not_installed_is_told_as_such(tmp_path: Path) -> None:
    result = Peers(only="langgraph-dev,ai-sdk", folder=str(tmp_path), install=NEVER).run(bare_stage(tmp_path))
    assert result.not_installed == ["langgraph-dev", "ai-sdk"]
    assert result.servers == {}
    assert "langgraph-dev is not installed" in result.doubts[0]


def test_a_peer_that_cannot_be_installed_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments.sys, "executable", str(tmp_path / "no-python"))
    result = Peers(only="rq-flask-sse", folder=str(tmp_path / "peers")).run(bare_stage(tmp_path))
    assert result.not_installed == ["rq-flask-sse"]


def test_what_is_installed_is_not_installed_again_unless_its_list_has_changed(tmp_path: Path) -> None:
    wanted, filled = tmp_path / "requirements.txt", []

    class Counted(Venv):
        def _fill(self) -> None:
            filled.append(self.wanted.read_text())

    wanted.write_text("a==1\n")
    for _ in range(2):
        Counted(tmp_path / "a", wanted).install()
    assert filled == ["a==1\n"]
    wanted.write_text("a==2\n")
    assert not Counted(tmp_path / "a", wanted).installed
    Counted(tmp_path / "a", wanted).install()
    assert filled == ["a==1\n", "a==2\n"]


def test_an_installation_that_fails_leaves_no_stamp(tmp_path: Path) -> None:
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("a==1\n")

    class Failing(Venv):
        def _fill(self) -> None:
            self._run("false")

    with pytest.raises(NotInstalled):
        Failing(tmp_path / "a", wanted).install()
    assert not Failing(tmp_path / "a", wanted).installed


def test_a_peer_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"The peers are runtail, .*, not sidekiq"):
        Peers(only="sidekiq").run(bare_stage(tmp_path))


@pytest.mark.thorough
def test_runtail_is_measured_by_the_same_code() -> None:
    small: dict[str, Any] = {"posts": 2, "events": 60, "cuts": 3, "away_ms": 10, "rounds": 1, "windows": 4}
    scenario = Peers(
        only="runtail,runtail-text",
        measures="first-event,reconnects,windows,storage",
        stored_runs=1,
        deltas=20,
        delta_interval_ms=1,
        settle=0.5,
        **small,
    )
    with Stage() as stage:
        result = scenario.run(stage)
    assert result.doubts == []
    assert list(result.servers) == ["runtail", "runtail-text"]
    for figures in result.servers.values():
        assert 0 < figures["first_event_p50_ms"] <= figures["first_delta_p50_ms"]
        assert figures["reconnect_lost_most"] == figures["reconnect_doubled_most"] == 0
        assert figures["reconnect_saw_the_end"] == figures["stored_runs_ended"] == 1
        assert (figures["windows_open"], figures["read_later"]) == (4, 20)
        assert figures["stored_redis_bytes"] > 0
    json.dumps(result.servers)


def test_names_are_unique() -> None:
    assert len(PEERS) == len(KINDS)
