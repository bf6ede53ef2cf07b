"""Exported logs: the seal and its checker by values, the commands as their users meet them."""

import hashlib
import json
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.cli.export import LINE_MAX_BYTES, Broken, Checked, Sealer, check, envelopes
from app.protocol.digest import digest
from app.protocol.events import SCHEMAS, dumps, encode
from app.protocol.reducer import fold, initial
from tests.harness import READY_SECONDS, ROOT, Stack, eventually, free_port
from tests.test_cli import Follower, bad_line, one_sentence, runtail

RUN = "run_01JXEXAMPLE"
GOLDEN = ROOT / "tests" / "golden"
NOWHERE = f"http://127.0.0.1:{free_port()}"


def log_of(*events: tuple[str, dict[str, Any]], run_id: str = RUN, step_ms: int = 0) -> list[bytes]:
    """The lines of a whole run, that ends after these events, each with its newline."""
    middle = [("run.created", {"agent": "test", "input_preview": None}), *events]
    made = [
        encode(run_id, n, type, payload, f"2026-06-12T12:00:{n * step_ms / 1_000:06.3f}Z")
        for n, (type, payload) in enumerate(middle, 1)
    ]
    computed = digest(fold((event.envelope() for event in made), initial(run_id)), "Done.")
    end = {"output": "Done.", "usage": None, "digest": computed}
    ts = f"2026-06-12T12:00:{(len(made) + 1) * step_ms / 1_000:06.3f}Z"
    made.append(encode(run_id, len(made) + 1, "run.completed", end, ts))
    return [event.text.encode() + b"\n" for event in made]


def sealed(lines: list[bytes], run_id: str = RUN) -> list[bytes]:
    """The lines, and their seal."""
    sealer = Sealer()
    for line in lines:
        sealer.add(line[:-1])
    return [*lines, sealer.seal(run_id, json.loads(lines[-1])["payload"]["digest"]) + b"\n"]


LOG = log_of(*[("custom.tick", {"n": n, "text": "🚚 ünd\u2028"}) for n in range(8)])
FILE = sealed(LOG)


def split(data: bytes) -> list[bytes]:
    """As a file is read: each line with its newline, the last one perhaps without."""
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def complaint(data: bytes | list[bytes]) -> str:
    """What the checker says of a file that is not in order."""
    with pytest.raises(Broken) as raised:
        check(split(data if isinstance(data, bytes) else b"".join(data)))
    return str(raised.value)


# The format.


def test_the_seal_is_what_the_protocol_document_says() -> None:
    seal = json.loads(FILE[-1])
    assert seal == {
        "v": 1,
        "type": "export.seal",
        "run_id": RUN,
        "payload": {
            "events": len(LOG),
            "digest": json.loads(LOG[-1])["payload"]["digest"],
            "lines": [hashlib.sha256(line[:-1]).hexdigest()[:16] for line in LOG],
            "sha256": hashlib.sha256(b"".join(LOG)).hexdigest(),
        },
    }


def test_the_document_s_seal_is_that_of_its_worked_example() -> None:
    document = (ROOT / "docs" / "protocol.md").read_text()
    example = document.partition("#### Worked example")[2].partition("```json\n")[2].partition("```")[0]
    lines = split(example.encode())
    assert check(sealed(lines)).events == 12
    assert f"```json\n{sealed(lines)[-1].decode()}```" in document


def test_a_file_in_order_is_told_by_its_run_its_events_and_its_digest() -> None:
    found = json.loads(LOG[-1])["payload"]["digest"]
    assert check(FILE) == Checked(RUN, len(LOG), found, sealed=True)
    assert [event["seq"] for event in envelopes(FILE)] == list(range(1, len(LOG) + 1))


def test_a_window_that_was_kept_is_checked_by_its_digest() -> None:
    expired = b'{"v":1,"run_id":"%s","type":"stream.expired","ts":"2026-06-12T12:00:00.000Z","payload":{}}\n'
    kept = [b"\n", *LOG[:4], b"\n", expired % RUN.encode(), b"\n", *LOG[4:]]
    assert check(kept) == Checked(RUN, len(LOG), json.loads(LOG[-1])["payload"]["digest"], sealed=False)
    assert [event["seq"] for event in envelopes(kept)] == list(range(1, len(LOG) + 1))
    changed = b"".join(kept).replace(b'"output":"Done."', b'"output":"Gone."')
    assert "another digest" in complaint(changed)


# What is found.


@given(at=st.integers(0, sum(map(len, FILE)) - 1), change=st.integers(1, 255))
@settings(max_examples=1_500, deadline=None)
def test_one_changed_byte_anywhere_is_found_and_its_event_named(at: int, change: int) -> None:
    data = bytearray(b"".join(FILE))
    line = data[:at].count(b"\n") + 1
    data[at] ^= change
    said = complaint(bytes(data))
    if line <= len(LOG):
        assert said.startswith(f"Event {line} is not what was exported"), said
    else:
        assert "seal" in said


@given(at=st.integers(0, sum(map(len, FILE)) - 1))
@settings(max_examples=300, deadline=None)
def test_a_file_that_was_cut_off_anywhere_is_found(at: int) -> None:
    data = b"".join(FILE)[:at]
    if data == b"".join(LOG):
        assert not check(split(data)).sealed
    elif data:
        assert "no seal" in complaint(data)


@pytest.mark.parametrize("k", [1, 2, 5, len(LOG)])
def test_a_line_that_is_missing_doubled_or_added_is_named(k: int) -> None:
    foreign = encode(RUN, k, "custom.tick", {}).text.encode() + b"\n"
    assert complaint([*FILE[: k - 1], *FILE[k:]]) == f"Event {k} is missing."
    assert complaint([*FILE[:k], *FILE[k - 1 :]]) == f"Event {k} is there twice."
    assert complaint([*FILE[: k - 1], foreign, *FILE[k - 1 :]]) == f"Line {k} was added: it was not exported."
    assert complaint([*FILE[: k - 1], b"\n", *FILE[k - 1 :]]) == f"Line {k} was added: it was not exported."


def test_lines_that_were_swapped_are_named() -> None:
    near, far = list(FILE), list(FILE)
    near[1], near[2] = near[2], near[1]
    far[1], far[6] = far[6], far[1]
    assert complaint(near) == "Events 2 and 3 are swapped."
    assert complaint(far) == "Events 2 and 7 are swapped."


@pytest.mark.parametrize(
    "change",
    [
        {"events": 3},
        {"digest": "0" * 64},
        {"sha256": "0" * 64},
        {"lines": []},
        {"lines": None},
        {"lines": [[]]},
        {"more": 1},
    ],
)
def test_a_seal_that_was_changed_is_found(change: dict[str, Any]) -> None:
    seal = json.loads(FILE[-1])
    text = dumps({**seal, "payload": {**seal["payload"], **change}}).encode() + b"\n"
    assert complaint([*LOG, text]) == "The seal is not what was exported."
    assert complaint([*LOG, FILE[-1], FILE[-1]]) != ""
    assert complaint([*LOG, FILE[-1].replace(RUN.encode(), b"run_2")]) == "The seal is not what was exported."


def test_a_log_that_was_sealed_anew_still_has_to_fold_to_its_digest() -> None:
    end = LOG[-1].replace(b"Done.", b"Gone.")
    assert "another digest" in complaint(sealed([*LOG[:-1], end]))
    assert "gap" in complaint(sealed([*LOG[:3], *LOG[4:]]))
    assert "no end of the run" in complaint([*LOG[:-1], seal_of(LOG[:-1])])
    assert complaint(sealed([b"\n", *LOG])) == "The seal is not what was exported."
    other = log_of(run_id="run_2")
    assert "an event of run_2 in the log of" in complaint(sealed([LOG[0], *other[1:]]))


def seal_of(lines: list[bytes]) -> bytes:
    sealer = Sealer()
    for line in lines:
        sealer.add(line[:-1])
    return sealer.seal(RUN, "0" * 64) + b"\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "The file is empty."),
        (b"\n", "There is no event in the file."),
        (b"hello\n", "This is no exported log: line 1 is not JSON in UTF-8."),
        (b"\xff\xfe\x00\n", "This is no exported log: line 1 is not JSON in UTF-8."),
        (b"[" * 100_000 + b"\n", "This is no exported log: line 1 is not JSON in UTF-8."),
        (b"[]\n", "This is no exported log: line 1 is not JSON in UTF-8."),
        (b"{}\n", "This is no exported log: line 1 does not fit: v is missing, or of another type."),
        (FILE[-1], "Event 1 is missing."),
        (b"".join(LOG[:3]), "There is no end of the run, and no seal that fits: it stops after event 3."),
        (b"".join(LOG[1:]), None),
        (LOG[0].replace(b'"v":1', b'"v":2'), None),
        (LOG[0].replace(b"2026-06-12T12:00:00.000Z", b"today"), None),
        (LOG[0].replace(b"00.000Z", b"00.000"), None),
        (LOG[0].replace(RUN.encode(), b"\\ud800") + LOG[1], None),
        (LOG[0].replace(b"null", b"NaN") + LOG[1], None),
        (LOG[0].replace(b"null", b"9" * 5_000) + LOG[1], None),
        (LOG[0].replace(b"null", b"[" * 900 + b"]" * 900) + LOG[1], None),
    ],
)
def test_what_is_no_exported_log_is_told_in_a_sentence(data: bytes, said: str | None) -> None:
    told = complaint(data)
    assert said is None or told == said
    assert told.endswith(".")


def test_a_line_without_an_end_is_not_read_to_its_end() -> None:
    assert complaint(b"x" * (LINE_MAX_BYTES + 1)).startswith("Line 1 is longer than 64 MB")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted({name for schema in SCHEMAS.values() for name in schema().fields})


@given(
    events=st.lists(
        st.tuples(st.sampled_from(sorted(SCHEMAS)), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6)),
        max_size=6,
    )
)
@settings(max_examples=400, deadline=None)
def test_no_payload_whatever_ends_in_anything_but_an_answer(events: list[tuple[str, dict[str, Any]]]) -> None:
    lines = [
        json.dumps({"v": 1, "seq": n, "run_id": RUN, "type": type, "ts": "2026-06-12T12:00:00Z", "payload": payload})
        for n, (type, payload) in enumerate([("run.created", {"agent": "a", "input_preview": 1}), *events], 1)
    ]
    data = [line.encode() + b"\n" for line in lines]
    for file in (data, [*data, seal_of(data)]):
        with suppress(Broken):
            check(file)


@pytest.mark.parametrize("name", ["support", "failed", "cancelled", "restart", "resumed", "unknown"])
def test_every_kind_of_log_is_accepted(name: str) -> None:
    lines = split((GOLDEN / f"{name}.ndjson").read_bytes())
    if json.loads(lines[-1])["type"] in ("run.completed", "run.failed", "run.cancelled"):
        state = fold(map(json.loads, lines[:-1]), initial(json.loads(lines[0])["run_id"]))
        end = json.loads(lines[-1])
        end["payload"]["digest"] = digest(state, end["payload"].get("output"))
        lines = [*lines[:-1], dumps(end).encode() + b"\n"]
        assert check(sealed(lines, end["run_id"])).events == len(lines)


# The commands.


@pytest.fixture(scope="module")
def run_id(live: Stack) -> str:
    """A run that has ended."""
    question = {"message": "Where is order 48291?", "latency_scale": 0.02}
    run_id = live.start("support", question)
    live.ended(run_id)
    return run_id


@pytest.fixture(scope="module")
def long_run_id(live: Stack) -> str:
    """A run that has ended, with half a megabyte of log."""
    run_id = live.start("emit", {"count": 3_000, "type": "custom.tick"})
    live.ended(run_id)
    return run_id


@pytest.fixture
def file(live: Stack, run_id: str, tmp_path: Path) -> Path:
    """Its log, exported."""
    path = tmp_path / "log.ndjson"
    done = runtail(live.url, "export", run_id, "-o", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    return path


def test_an_exported_log_is_byte_for_byte_the_log(live: Stack, run_id: str, file: Path) -> None:
    headers = {"Accept": "application/x-ndjson"}
    log = live.http.get(f"/runs/{run_id}/events", headers=headers).content.lstrip(b"\n")
    lines = split(file.read_bytes())
    assert b"".join(lines[:-1]) == log
    assert json.loads(lines[-1])["payload"]["sha256"] == hashlib.sha256(log).hexdigest()
    assert runtail(live.url, "export", run_id).stdout.encode() == file.read_bytes()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_an_export_over_a_line_that_keeps_breaking_is_the_same(live: Stack, long_run_id: str, tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert runtail(live.url, "export", long_run_id, "-o", str(whole)).returncode == 0
    with bad_line(live.port, [50_000, 700, -1, 90_001, 3]) as port:
        done = runtail(f"http://127.0.0.1:{port}", "export", long_run_id, "-o", str(again))
    assert done.returncode == 0
    assert "Trying again." in done.stderr
    assert again.read_bytes() == whole.read_bytes()
    assert check(split(again.read_bytes())).sealed


def test_only_a_finished_run_is_exported_or_replayed_and_no_file_is_left(live: Stack, tmp_path: Path) -> None:
    run_id = live.start("emit", {"count": 100_000, "interval_ms": 100, "type": "custom.tick"})
    for command in (("export", run_id, "-o", str(tmp_path / "log")), ("replay", run_id)):
        assert "has not ended yet" in one_sentence(runtail(live.url, *command))
    live.http.post(f"/runs/{run_id}/cancel")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_interrupted_leaves_what_was_there(live: Stack, long_run_id: str, tmp_path: Path) -> None:
    target = tmp_path / "folder" / "log"
    target.parent.mkdir()
    target.write_text("before")
    with (
        bad_line(live.port, [50_000, *[0] * 1_000]) as port,
        Follower(tmp_path, f"http://127.0.0.1:{port}", "export", long_run_id, "-o", str(target)) as export,
    ):
        eventually(lambda: len(list(target.parent.iterdir())) == 2 and "Trying again." in export.err)
        export.process.send_signal(signal.SIGINT)
        assert export.process.wait(10) == 130
    assert [path.name for path in target.parent.iterdir()] == ["log"]
    assert target.read_text() == "before"


@pytest.mark.parametrize("target", ["missing/log", ".", "/dev/null", "x" * 300])
def test_a_file_that_cannot_be_written_is_told(live: Stack, run_id: str, target: str, tmp_path: Path) -> None:
    done = runtail(live.url, "export", run_id, "-o", target if target.startswith("/") else str(tmp_path / target))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not Path("/dev/null").is_file()


def test_a_file_is_verified_without_a_server(run_id: str, file: Path) -> None:
    done = runtail(NOWHERE, "verify", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        f"is what was exported: {json.loads(split(file.read_bytes())[-1])['payload']['events']} events" in done.stdout
    )
    data = file.read_bytes()
    file.write_bytes(data.replace(b"Order #48291", b"Order #48292", 1))
    line = data[: data.index(b"Order #48291")].count(b"\n") + 1
    done = runtail(NOWHERE, "verify", str(file))
    assert done.returncode == 1
    assert f"Event {line} is not what was exported." in done.stderr


def test_a_kept_window_is_verified_and_the_answer_says_by_what(live: Stack, run_id: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(live.http.get(f"/runs/{run_id}/events", headers={"Accept": "application/x-ndjson"}).content)
    done = runtail(NOWHERE, "verify", str(kept))
    assert done.returncode == 0
    assert "It has no seal" in done.stdout


@pytest.mark.parametrize("name", ["./nothing", "folder/", "out/of/reach"])
def test_a_file_that_is_not_there_is_no_run(name: str, tmp_path: Path) -> None:
    for command in ("verify", "replay"):
        assert "cannot be read" in one_sentence(runtail(NOWHERE, command, f"{tmp_path}/{name}"))
    assert "cannot be read" in one_sentence(runtail(NOWHERE, "verify", str(tmp_path)))


def test_a_replay_shows_what_a_tail_shows_with_and_without_a_server(live: Stack, run_id: str, file: Path) -> None:
    tail = runtail(live.url, "tail", run_id)
    for url, log in ((NOWHERE, str(file)), (live.url, run_id)):
        done = runtail(url, "replay", log, "--speed", "1000")
        assert (done.returncode, done.stdout, done.stderr) == (0, tail.stdout, "")


def test_a_replay_has_the_timing_of_the_run_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(sealed(log_of(*[("custom.tick", {"n": n}) for n in range(3)], step_ms=2_000))))
    started = time.monotonic()
    with Follower(tmp_path, NOWHERE, "replay", str(path), "--speed", "4") as replay:
        eventually(lambda: "[run]" in replay.out, READY_SECONDS)
        shown = time.monotonic()
        assert replay.process.wait(10) == 0
        assert time.monotonic() - started > 2
        assert time.monotonic() - shown < 5
    with Follower(tmp_path, NOWHERE, "replay", str(path), "--speed", "0.1") as replay:
        eventually(lambda: "[run]" in replay.out, READY_SECONDS)
        replay.process.send_signal(signal.SIGINT)
        assert replay.process.wait(10) == 130
    assert replay.err == ""


def test_a_replay_ends_with_the_code_of_the_run_and_not_at_all_if_the_file_was_changed(
    live: Stack, file: Path, tmp_path: Path
) -> None:
    cancelled = live.start("emit", {"count": 100_000, "interval_ms": 100, "type": "custom.tick"})
    live.http.post(f"/runs/{cancelled}/cancel")
    live.ended(cancelled)
    assert runtail(live.url, "replay", cancelled, "--speed", "1000").returncode == 3
    file.write_bytes(file.read_bytes()[:-9])
    done = runtail(NOWHERE, "replay", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert "no seal" in done.stderr
    for speed in ("0", "nan", "1001"):
        assert runtail(NOWHERE, "replay", str(file), "--speed", speed).returncode == 2
