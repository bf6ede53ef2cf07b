"""What a client says on its WebSocket: messages, attacks, commands, and the answers to them."""

import json
import struct
from contextlib import suppress

import pytest
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from app.storage.run_store import Principal
from app.verbs.external_payloads import APPROVAL_ID_MAX_CHARS
from tests.external_writer import ExternalWriter
from tests.harness import Stack, eventually, pending_run, problem
from tests.log_author import LogAuthor
from tests.socket_client import SocketClient, masked
from tests.test_hub import LONG, SMALL_BUFFER, open_windows
from tests.waiting import waiting
from tests.websocket.conftest import Connect, texts

MESSAGE_BYTES = 65_536

# Messages.


ACK = json.dumps({"type": "ack", "id": "a", "seq": 1}).encode()


@pytest.mark.parametrize(
    ("said", "code"),
    [
        pytest.param(masked(0x1, ACK, mask=False), 1002, id="unmasked text"),
        pytest.param(masked(0x9, b"", mask=False), 1002, id="unmasked ping"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3, 1002, id="HTTP"),
        pytest.param(b"\x00" * 20, 1002, id="zeros"),
        pytest.param(b"\xff" * 20, 1002, id="ones"),
        pytest.param(masked(0x1, ACK, rsv=4), 1002, id="compressed"),
        pytest.param(masked(0x3, b"x"), 1002, id="unknown opcode"),
        pytest.param(masked(0x0, b"x"), 1002, id="continuation of nothing"),
        pytest.param(masked(0x1, b"{", fin=False) + masked(0x1, b"}"), 1002, id="text in a text"),
        pytest.param(masked(0x9, b"x", fin=False), 1002, id="ping in parts"),
        pytest.param(masked(0x9, b"x" * 126), 1002, id="long ping"),
        pytest.param(masked(0x8, b"x"), 1002, id="close of one byte"),
        pytest.param(masked(0x8, struct.pack("!H", 1006)), 1002, id="close with a code that is never sent"),
        pytest.param(masked(0x1, b'"\xc3\x28"'), 1007, id="not UTF-8"),
        pytest.param(masked(0x1, b'"\xed\xa0\x80"'), 1007, id="surrogate"),
        pytest.param(masked(0x2, ACK), 1003, id="binary"),
        pytest.param(masked(0x2, b"x" * 200_000), 1003, id="large binary"),
        pytest.param(masked(0x1, b"x" * (MESSAGE_BYTES + 1)), 1009, id="one byte too many"),
        pytest.param(masked(0x1, "é".encode() * (MESSAGE_BYTES // 2 + 1)), 1009, id="characters of two bytes"),
        pytest.param(masked(0x1, b"", fin=False) + masked(0x0, b"x" * 1_000, fin=False) * 66, 1009, id="many parts"),
        pytest.param(
            b"\x81\xff" + struct.pack("!Q", 1 << 40) + b"mask" + b"x" * 100_000, 1009, id="an announced terabyte"
        ),
    ],
)
def test_what_breaks_a_rule_ends_the_window_with_the_code_that_says_so(
    web: Stack, author: LogAuthor, client: SocketClient, said: bytes, code: int
) -> None:
    before = open_windows(web)
    with suppress(ConnectionError):  # the rest is not wanted any more
        client.socket.sendall(said)
    client.polite = False
    with suppress(ConnectionResetError):
        client.to_the_end()
    assert client.code == code
    client.socket.close()
    eventually(lambda: open_windows(web) == before - 1, 1)


def test_nothing_follows_the_close_frame_of_a_window_that_was_still_being_read_for(
    web: Stack, author: LogAuthor, connect: Connect
) -> None:
    author.append(400, "x" * 1_000)
    client = connect(web).shake(author.run_id, behind=b"garbage")
    client.polite = False
    client.to_the_end()
    assert client.code == 1002
    assert client.received.endswith(b"\x88\x02" + struct.pack("!H", 1002))


def test_the_windows_of_others_do_not_feel_what_one_client_says(
    web: Stack, author: LogAuthor, client: SocketClient, connect: Connect
) -> None:
    for garbage in (b"\x00" * 100, b"\x81\x05hello", b"\x81\xfe\xff"):
        connect(web).open(author.run_id).socket.sendall(garbage)
    author.append(3)
    author.end()
    assert client.to_the_end().texts == texts(author)


def test_a_message_of_64_kilobytes_is_taken_in_whatever_pieces_it_comes(client: SocketClient) -> None:
    message = ACK + b" " * (MESSAGE_BYTES - len(ACK))
    third = MESSAGE_BYTES // 3
    pieces = [message[:third], message[third : 2 * third], message[2 * third :]]
    frames = masked(0x1, pieces[0], fin=False) + masked(0x9, b"now?") + masked(0x0, pieces[1], fin=False)
    frames += masked(0x0, b"", fin=False) + masked(0x0, pieces[2])
    client.socket.sendall(masked(0x1, message))
    assert client.answer()["ok"]
    for start in range(0, len(frames), 7_001):
        client.socket.sendall(frames[start : start + 7_001])
    assert client.answer()["ok"]
    assert client.pongs == [b"now?"]


def test_a_message_may_come_byte_by_byte_and_several_at_once(client: SocketClient) -> None:
    for byte in masked(0x1, ACK):
        client.socket.sendall(bytes([byte]))
    assert client.answer()["ok"]
    client.socket.sendall(masked(0x1, ACK) * 3)
    for _ in range(3):
        assert client.answer()["ok"]


def test_what_is_said_together_with_the_handshake_is_heard(web: Stack, author: LogAuthor, connect: Connect) -> None:
    client = connect(web).shake(author.run_id, behind=masked(0x1, ACK))
    assert {message["type"] for message in client.messages(2)} == {"run.created", "stream.answer"}


def test_pings_are_answered_and_pongs_are_not(client: SocketClient) -> None:
    client.send(Pong(b"unasked"))
    client.send(Ping(b"x" * 125))
    client.send(Pong())
    client.send(Ping())
    while len(client.pongs) < 2:
        assert client.read()
    assert client.pongs == [b"x" * 125, b""]


# Commands.


def test_cancel_is_answered_before_the_end_that_it_causes(web: Stack, connect: Connect) -> None:
    run = pending_run(web.services)
    client = connect(web).open(run.id).say(type="cancel", id="c-1").to_the_end()
    (answer,) = client.answers
    result = {"run_id": run.id, "status": "cancelled"}
    assert answer == {"command": "cancel", "id": "c-1", "ok": True, "status": 200, "result": result}
    assert [message["type"] for message in client.envelopes if "seq" in message][-1] == "run.cancelled"
    assert client.code == 1000


def test_a_run_that_executes_is_cancelled_over_its_websocket(live: Stack, connect: Connect) -> None:
    run_id = live.start("emit", {"count": 100_000, "interval_ms": 20, "type": "custom.tick"})
    client = connect(live).open(run_id)
    client.messages(5)
    client.say(type="cancel").to_the_end()
    (answer,) = client.answers
    assert (answer["ok"], answer["id"]) == (True, None)
    seqs = [message["seq"] for message in client.envelopes if "seq" in message]
    assert seqs == list(range(1, len(seqs) + 1))
    assert live.read(run_id)["status"] == "cancelled"
    assert client.code == 1000


@pytest.mark.parametrize(("command", "decision"), [("approve", "approved"), ("deny", "denied")])
def test_a_decision_is_that_of_the_http_call(web: Stack, connect: Connect, command: str, decision: str) -> None:
    run = waiting(web.services)
    client = connect(web).open(run.id)
    answer = client.ask_for(type=command, approval_id="apr_1", comment="So be it.", id="é")
    assert (answer["command"], answer["id"], answer["status"]) == (command, "é", 200)
    (listed,) = web.http.get("/approvals", params={"run": run.id}).json()["approvals"]
    assert answer["result"] == listed
    assert (listed["status"], listed["comment"], listed["by"]) == (decision, "So be it.", "dev")
    again = client.ask_for(type=command, approval_id="apr_1")
    assert again["result"] == listed
    other = client.ask_for(type={"approve": "deny", "deny": "approve"}[command], approval_id="apr_1")
    assert (other["ok"], other["status"], other["error"]["code"]) == (False, 409, "approval_resolved")
    assert other["error"]["approval"] == listed


def test_an_approval_that_a_writer_has_given_its_longest_id_can_be_decided(web: Stack, connect: Connect) -> None:
    writer, id = ExternalWriter.start(web.http), "a" * APPROVAL_ID_MAX_CHARS
    asked = ("approval.required", {"approval_id": id, "label": "May it?", "requires": "owner"})
    assert writer.append(asked).status_code == 200
    answer = connect(web).open(writer.run_id).ask_for(type="approve", approval_id=id)
    assert (answer["status"], answer["result"]["status"]) == (200, "approved")


def test_an_approval_of_another_run_is_not_this_windows_business(web: Stack, connect: Connect) -> None:
    other, run = waiting(web.services), pending_run(web.services)
    answer = connect(web).open(run.id).ask_for(type="approve", approval_id="apr_1", run_id=other.id)
    assert answer["error"]["code"] == "invalid_request"
    answer = connect(web).open(run.id).ask_for(type="approve", approval_id="apr_1")
    assert (answer["status"], answer["error"]["code"]) == (404, "approval_not_found")
    (listed,) = web.http.get("/approvals", params={"run": other.id}).json()["approvals"]
    assert listed["status"] == "open"


def test_the_owner_of_a_run_that_an_operator_decides_for_is_told_so(guarded: Stack, connect: Connect) -> None:
    who = Principal("acme", "ann")
    run = waiting(guarded.services, principal=who, requires="operator")
    key = guarded.services.registry.create_key(who)
    answer = connect(guarded).open(run.id, Authorization=f"Bearer {key}").ask_for(type="approve", approval_id="apr_1")
    assert (answer["status"], answer["error"]["code"]) == (403, "operator_required")


def test_inputs_are_taken_in_the_order_in_which_they_were_sent(web: Stack, connect: Connect) -> None:
    run = pending_run(web.services)
    client = connect(web).open(run.id)
    for n in range(8):
        client.say(type="input", text=f"text {n}", id=str(n), idempotency_key=f"k{n}")
    for n in range(8):
        answer = client.answer()
        assert (answer["id"], answer["status"]) == (str(n), 202)
        assert answer["result"] == {"input_id": f"inp_{n + 1}", "run_id": run.id}
    again = client.ask_for(type="input", text="text 3", idempotency_key="k3")
    assert again["result"]["input_id"] == "inp_4"
    clash = client.ask_for(type="input", text="text 4", idempotency_key="k3")
    assert (clash["status"], clash["error"]["code"]) == (409, "idempotency_conflict")


def test_what_was_said_is_carried_out_even_if_the_client_does_not_wait(web: Stack, connect: Connect) -> None:
    run = pending_run(web.services)
    client = connect(web).open(run.id)
    client.messages(1)
    said = [client.frame(TextMessage(json.dumps({"type": "input", "text": str(n)}))) for n in range(3)]
    cancel = client.frame(TextMessage(json.dumps({"type": "cancel"})))
    client.socket.sendall(b"".join([*said, cancel, client.frame(CloseConnection(1000))]))
    client.socket.close()
    eventually(lambda: web.read(run.id)["status"] == "cancelled")
    answer = web.http.post(f"/runs/{run.id}/input", json={"text": "late"})
    problem(answer, 409, "run_ended")


def test_ack_tells_where_the_log_is_and_nothing_beyond_what_was_sent_is_acknowledged(
    author: LogAuthor, client: SocketClient
) -> None:
    author.append(4)
    client.messages(5)
    for seq in (0, 3, 5):
        answer = client.ask_for(type="ack", seq=seq)
        assert (answer["status"], answer["result"]) == (200, {"seq": seq, "head": 5})
    answer = client.ask_for(type="ack", seq=6)
    assert (answer["ok"], answer["status"], answer["error"]["code"]) == (False, 422, "invalid_request")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("nonsense", "invalid_json"),
        ('{"type": "ack", "seq": NaN}', "invalid_json"),
        ('{"type": "ack", "type": "ack", "seq": 1}', "invalid_json"),
        ("[" * 50_000, "json_too_deep"),
        ("null", "invalid_request"),
        ("[]", "invalid_request"),
        ('"cancel"', "invalid_request"),
        ("{}", "invalid_request"),
        ('{"type": "erase"}', "invalid_request"),
        ('{"type": ["cancel"]}', "invalid_request"),
        ('{"type": "cancel", "run_id": "run_1"}', "invalid_request"),
        ('{"type": "cancel", "id": 7}', "invalid_request"),
        ('{"type": "cancel", "id": "%s"}' % ("x" * 101), "invalid_request"),
        ('{"type": "approve"}', "invalid_request"),
        ('{"type": "approve", "approval_id": ""}', "invalid_request"),
        ('{"type": "deny", "approval_id": "apr_1", "comment": "%s"}' % ("x" * 2_001), "invalid_request"),
        ('{"type": "input"}', "invalid_request"),
        ('{"type": "input", "text": ""}', "invalid_request"),
        ('{"type": "input", "text": "%s"}' % ("x" * 20_001), "invalid_request"),
        ('{"type": "input", "text": "x", "idempotency_key": "a b"}', "invalid_request"),
        ('{"type": "ack"}', "invalid_request"),
        ('{"type": "ack", "seq": -1}', "invalid_request"),
        ('{"type": "ack", "seq": "1"}', "invalid_request"),
        ('{"type": "ack", "seq": 1.0}', "invalid_request"),
        ('{"type": "ack", "seq": true}', "invalid_request"),
        ('{"type": "approve", "approval_id": "\\u0000"}', "approval_not_found"),
    ],
    ids=lambda value: value[:40],
)
def test_what_is_no_command_is_answered_and_the_window_stays(
    web: Stack, author: LogAuthor, client: SocketClient, said: str, code: str
) -> None:
    answer = client.send(TextMessage(said)).answer()
    assert (answer["ok"], answer["error"]["code"]) == (False, code), answer
    assert set(answer) == {"command", "id", "ok", "status", "error"}
    assert client.ask_for(type="ack", seq=1, id="after")["id"] == "after"
    assert web.read(author.run_id)["status"] == "pending"


def test_the_id_and_the_type_of_a_bad_command_come_back_where_they_can_be_read(client: SocketClient) -> None:
    answer = client.ask_for(type="approve", id="a-1")
    assert (answer["command"], answer["id"]) == ("approve", "a-1")
    answer = client.ask_for(type="explode", id="a-2")
    assert (answer["command"], answer["id"]) == (None, "a-2")


def test_a_finished_run_takes_no_commands_because_its_window_has_ended(
    web: Stack, author: LogAuthor, client: SocketClient
) -> None:
    author.commit_end()
    author.publish_end()
    client.polite = False
    assert client.until(b"\x88\x02").code == 1000
    client.socket.sendall(masked(0x1, b'{"type": "cancel"}'))
    assert client.to_the_end().answers == []


def test_more_than_eight_commands_at_once_are_too_many(web: Stack, client: SocketClient) -> None:
    client.socket.sendall(masked(0x1, ACK) * 9)
    assert client.to_the_end().code == 1008


def test_a_client_that_asks_and_never_reads_is_closed(web: Stack, author: LogAuthor, connect: Connect) -> None:
    before = open_windows(web)
    client = connect(web, receive_buffer=2_048).open(author.run_id)
    client.messages(1)
    client.socket.settimeout(2)
    bad = masked(0x1, b'{"type": "explode", "id": "%s"}' % (b"x" * 100))
    with suppress(ConnectionError, TimeoutError):
        while open_windows(web) > before:  # and so it asks no faster than it could be answered
            client.socket.sendall(bad * 4)
    eventually(lambda: open_windows(web) == before, 10)


def test_answers_and_pongs_stand_between_events_also_for_a_slow_reader(
    web: Stack, author: LogAuthor, connect: Connect
) -> None:
    client = connect(web, receive_buffer=SMALL_BUFFER).open(author.run_id)
    client.messages(1)
    for n in range(30):
        author.append(2, LONG[: 1_000 * (n % 5 + 1)] if n % 3 else LONG)
        client.say(type="ack", seq=1, id=str(n)).send(Ping(str(n).encode()))
        while len(client.answers) <= n:
            assert client.read(3_000)
    author.end()
    client.to_the_end()
    assert [text for text in client.texts if '"seq":' in text.partition('"payload"')[0]] == texts(author)
    assert [answer["id"] for answer in client.answers] == [str(n) for n in range(30)]
    assert client.pongs[-1] == b"29"
    assert client.code == 1000


def test_bytes_are_no_command(client: SocketClient) -> None:
    client.send(BytesMessage(ACK))
    assert client.to_the_end().code == 1003
