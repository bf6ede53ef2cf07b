"""A key that was removed, or has expired, opens nothing any more within ten seconds: no call, no window, no command."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from app.cli.main import main
from app.errors import StoreUnavailable
from app.factory import create_app
from app.storage.run_store import Principal, RunPosition
from app.streaming.opening import Opening
from app.streaming.wire import NDJSON
from tests.conftest import StackMaker, execute
from tests.harness import Stack, eventually, pending_run
from tests.log_author import LogAuthor
from tests.raw_client import RawClient
from tests.socket_client import SocketClient

MOST_SECONDS = 10.0
ANN = Principal("acme", "ann", admin=True)


@pytest.fixture(scope="module")
def guarded(module_stack: StackMaker) -> Stack:
    """A server that wants keys, without a worker."""
    stack = module_stack(RUNTAIL_DEV="")
    stack.start_web()
    return stack


def remove(stack: Stack, key: str) -> None:
    """As an administrator of the database does."""
    execute(stack.env["DATABASE_URL"], f"DELETE FROM api_keys WHERE id = '{key.split('_')[1]}'")


def revoke(stack: Stack, key: str) -> None:
    """As the command line does."""
    done = CliRunner().invoke(main, ["keys", "revoke", key.split("_")[1], "--database", stack.env["DATABASE_URL"]])
    assert done.exit_code == 0, done.output


def expire(stack: Stack, key: str) -> None:
    """Its time is over."""
    execute(stack.env["DATABASE_URL"], f"UPDATE api_keys SET expires_at = now() WHERE id = '{key.split('_')[1]}'")


ENDS: list[Callable[[Stack, str], None]] = [remove, revoke, expire]


def opened(stack: Stack, run_id: str, key: str) -> SocketClient:
    """A WebSocket."""
    return SocketClient(stack.port).open(run_id, Authorization=f"Bearer {key}")


def wait_until_open(stack: Stack, count: int) -> None:
    """Until so many windows are counted."""
    root = stack.services.registry.create_key(ANN)
    headers = {"Authorization": f"Bearer {root}"}

    def counted() -> bool:
        found = stack.http.get("/metrics", headers=headers).text
        return f"runtail_open_windows {float(count)}" in found

    eventually(counted, MOST_SECONDS, what=f"{count} open windows")


def watch(stack: Stack, path: str, key: str, media_type: str) -> float:
    """Follow a window to its end; when that was."""
    headers = {"Authorization": f"Bearer {key}", "Accept": media_type}
    with httpx.stream("GET", stack.url + path, headers=headers, timeout=30) as window:
        assert window.status_code == 200
        for _ in window.iter_raw():
            pass
    return time.monotonic()


@pytest.mark.parametrize("end", ENDS)
def test_every_window_of_a_key_that_is_no_more_ends(guarded: Stack, end: Callable[[Stack, str], None]) -> None:
    key, other = guarded.services.registry.create_key(ANN), guarded.services.registry.create_key(ANN)
    one, two = (pending_run(guarded.services, principal=ANN).id for _ in range(2))
    several = f"/events?runs={one},{two}"
    windows = [(f"/runs/{one}/events", "text/event-stream"), (f"/runs/{one}/events", "application/x-ndjson")]
    windows += [(several, "text/event-stream"), ("/admin/feed", "text/event-stream")]
    with ThreadPoolExecutor() as pool, opened(guarded, one, other) as kept, opened(guarded, one, key) as lost:
        following = [pool.submit(watch, guarded, path, key, kind) for path, kind in windows]
        lost.ask_for(type="ack", seq=0)
        wait_until_open(guarded, len(windows) + 2)
        end(guarded, key)
        began = time.monotonic()
        assert all(window.result(30) - began < MOST_SECONDS for window in following)
        while lost.code is None:
            assert lost.read(), lost.texts
        assert time.monotonic() - began < MOST_SECONDS
        assert lost.code == 4001
        headers = {"Authorization": f"Bearer {key}"}
        eventually(lambda: guarded.http.get("/runs", headers=headers).status_code == 401, MOST_SECONDS)
        assert kept.ask_for(type="ack", seq=0)["ok"]


def test_who_always_has_a_command_under_way_is_cut_off_too(guarded: Stack) -> None:
    key = guarded.services.registry.create_key(ANN)
    run = pending_run(guarded.services, principal=ANN).id
    with opened(guarded, run, key) as client:
        for n in range(5):
            client.say(type="input", text=str(n))
        revoke(guarded, key)
        began = time.monotonic()
        answered = 0
        while client.code is None and time.monotonic() - began < MOST_SECONDS:
            client.read()
            for _ in client.answers[answered:] if client.code is None else ():
                client.say(type="input", text="more")
            answered = len(client.answers)
        assert client.code == 4001
        said = len(guarded.services.waits.inputs(run, 0, 1_000))
        assert said < len(client.answers) + 8


@pytest.mark.parametrize("path", ["/runs/{run}/events", "/events?runs={run}"])
def test_a_client_that_does_not_read_is_cut_off_too(guarded: Stack, path: str) -> None:
    key = guarded.services.registry.create_key(ANN)
    author = LogAuthor(guarded, principal=ANN)
    author.append(40, "x" * 100_000)
    with RawClient(guarded.port, receive_buffer=8_192) as client:
        headers = f"Host: localhost\r\nAuthorization: Bearer {key}\r\n\r\n"
        client.socket.sendall(f"GET {path.format(run=author.run_id)} HTTP/1.1\r\n{headers}".encode())
        client.until(b"run.created")
        revoke(guarded, key)
        wait_until_open(guarded, 0)


def test_keys_are_listed_and_expire_by_themselves(guarded: Stack) -> None:
    database = ["--database", guarded.env["DATABASE_URL"]]
    create = ["keys", "create", "--tenant", "acme\x1b[1m", "--user", "eve", "--write", "--days", "30", *database]
    made = CliRunner().invoke(main, create)
    assert made.exit_code == 0, made.output
    key_id = made.output.split("_")[1]
    listed = CliRunner().invoke(main, ["keys", "list", *database]).output
    (line,) = [line for line in listed.splitlines() if line.startswith(key_id)]
    assert "eve write made" in line
    assert "expires never" not in line
    assert "\x1b" not in listed
    assert made.output.strip() not in listed
    nobody = CliRunner().invoke(main, ["keys", "revoke", "00000000", *database])
    assert (nobody.exit_code, "There is no key" in nobody.output) == (2, True)
    assert CliRunner().invoke(main, [*create, "--days", "0"]).exit_code == 2


def test_a_window_stays_open_while_postgres_cannot_say_whether_its_key_does(guarded: Stack) -> None:
    """Not to know is no reason to throw everybody out."""

    def away(_: Any) -> set[str]:
        raise StoreUnavailable

    app = create_app(guarded.services.config, guarded.services)
    windows = app.extensions["runtail"].windows
    windows._good_keys = away
    ticket = windows.admission.admit(Principal("acme", "ann", key_id="1"), "", "run_1")
    window = windows.iterate(Opening(RunPosition("run_1", False, 1), 0, NDJSON, ticket), None)
    with pytest.raises(StoreUnavailable):
        windows.end_revoked()
    assert window.closing is None
    windows._good_keys = lambda _: set()
    windows.end_revoked()
    assert window.closing is not None
    window.close()
