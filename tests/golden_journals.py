"""Runs as a version of the project has left them, to be gone on with by the version at hand.

`python -m tests.golden_journals` plays the agent `every_verb` on real servers, and writes into tests/golden/journals
what is stored of its run at each of its waits, and at its end. It is to be run by the version *before* a change of the
SDK; what it wrote is never made anew, unless the agent gets more to do.
"""

import json
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.dev.services import EmbeddedServices
from app.protocol.events import Event
from app.protocol.reducer import fold, initial
from app.storage.event_log import Append
from app.storage.run_store import RunRecord, migrate
from app.storage.run_store.database import Database, rows
from tests.harness import ROOT, Stack, eventually
from tests.stored import ended, events, row

FOLDER = ROOT / "tests" / "golden" / "journals"
AGENT = "every_verb"
WAIT_SECONDS = 40
TABLES = {"run_ops": "op", "approvals": "id", "run_inputs": "n"}
RUN, GATE = "run_00000000000000000000000000", "/gate/of/the/agent"
"""Stand in a golden file for the run's id and for where the agent keeps what its tools did."""


def waits() -> list[str]:
    """The names of the golden files of a run that waits, in order."""
    return sorted(file.stem for file in FOLDER.glob("*.json") if file.stem != "end")


def golden(name: str) -> dict[str, Any]:
    """What is stored of the run: by table a list of rows, whose values are texts; and `effects`, a line for each
    thing that its tools did."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def unended(stored: dict[str, Any], upto: int = -1) -> dict[str, Any]:
    """The run before its terminal event, or that many events, as if it had waited there for a moment that has come.

    The record of a call that the log does not tell of yet is left out, where an event does tell of it.
    """
    (run,), log = stored["runs"], stored["run_events"][:upto]
    told = {event["op"] for event in log if event["type"].endswith((".completed", ".failed"))}
    telling = {event["op"] for event in stored["run_events"] if event["type"].endswith((".completed", ".failed"))}
    ops = [op for op in stored["run_ops"] if op["op"] in told or op["op"] not in telling]
    state = fold((json.loads(event["e"]) for event in log), initial(RUN))
    nothing = dict.fromkeys(("output", "digest", "usage", "finished_at"))
    again = {"status": "waiting", "published": "false", "wake_at": run["finished_at"], "owner": None}
    run = {**run, **nothing, **again, "state": json.dumps(state), "state_seq": str(len(log))}
    return {**stored, "runs": [run], "run_events": log, "run_ops": ops}


class Left:
    """One run of the agent on a stack, from its beginning or as a golden file has it."""

    def __init__(self, stack: Stack, run_id: str, gate: Path) -> None:
        self.stack = stack
        self.run_id = run_id
        self._effects = Path(f"{gate}.effects")
        self._database: Database = stack.services.store._database
        self._gate = gate

    @classmethod
    def begin(cls, stack: Stack, agent: str = AGENT, **input: Any) -> "Left":
        """A run from its beginning."""
        gate = stack.folder / secrets.token_hex(6)
        return cls(stack, stack.start(agent, {"gate": str(gate), "hold": None, **input}), gate)

    @classmethod
    def restore(cls, stack: Stack, stored: dict[str, Any]) -> "Left":
        """A run as a golden file, or `unended`, says, in Postgres and in Redis."""
        gate = stack.folder / secrets.token_hex(6)
        left = cls(stack, f"run_{secrets.token_hex(13).upper()}", gate)
        stored = json.loads(json.dumps(stored).replace(RUN, left.run_id).replace(GATE, str(gate)))
        left._effects.write_text("".join(f"{line}\n" for line in stored.pop("effects")))
        with left._database.session(atomic=True) as db:
            for table, found in stored.items():
                for one in found:
                    sql = f"INSERT INTO {table} ({', '.join(one)}) VALUES ({', '.join(['%s'] * len(one))})"
                    db.execute_sql(sql, tuple(one.values()))
        log = [Event(int(one["seq"]), one["type"], one["e"], one["op"]) for one in stored["run_events"]]
        stack.services.log.append(Append(left.run_id, 0, log, archived=len(log)))
        return left

    def stored(self) -> dict[str, Any]:
        """What is stored of it, for a golden file."""
        with self._database.session() as db:

            def found(table: str, column: str, order: str) -> list[dict[str, Any]]:
                names = [column[0] for column in db.execute_sql(f"SELECT * FROM {table} LIMIT 0").description]
                texts = ", ".join(f"{name}::text" for name in names)
                sql = f"SELECT {texts} FROM {table} t WHERE {column} = %s ORDER BY {order}"
                return rows(db.execute_sql(sql, (self.run_id,)))

            tables = {"runs": found("runs", "id", "t.id"), "run_events": found("run_events", "run_id", "t.seq")}
            tables |= {table: found(table, "run_id", f"t.{key}") for table, key in TABLES.items()}
        text = json.dumps({**tables, "effects": self.effects})
        anonymous: dict[str, Any] = json.loads(text.replace(self.run_id, RUN).replace(str(self._gate), GATE))
        return anonymous

    def write(self, name: str) -> None:
        """Make a golden file of it."""
        (FOLDER / f"{name}.json").write_text(json.dumps(self.stored(), indent=1) + "\n")
        sys.stdout.write(f"{name}\n")

    @property
    def effects(self) -> list[str]:
        """What its tools did."""
        return self._effects.read_text().splitlines()

    def go_on(self) -> None:
        """Give it what it waits for."""
        run = row(self.stack, self.run_id)
        open_ones = [one["id"] for one in run.state["approvals"] if one["status"] == "open"]
        for approval_id in open_ones:
            body = {"decision": "approved", "comment": "as you like"}
            answer = self.stack.http.post(f"/runs/{self.run_id}/approvals/{approval_id}", json=body)
            assert answer.status_code == 200, answer.text
        if run.wake_at is not None and run.wake_at > datetime.now(UTC):
            self._let_time_pass()
        elif not open_ones and run.wake_at is None:
            answer = self.stack.http.post(f"/runs/{self.run_id}/input", json={"text": "go on"})
            assert answer.status_code < 300, answer.text

    def _let_time_pass(self) -> None:
        with self._database.session(atomic=True) as db:
            sql = "UPDATE run_ops SET result = '0' WHERE run_id = %s AND kind = 'sleep' AND result::text::float > %s"
            db.execute_sql(sql, (self.run_id, time.time()))
            db.execute_sql("UPDATE runs SET wake_at = now() WHERE id = %s", (self.run_id,))

    def plays_on(self) -> Iterator[str]:
        """To its end; yields a name for each wait while it waits."""
        epoch = -1
        for _ in range(20):
            run = self._stands_after(epoch)
            if run.terminal:
                ended(self.stack, self.run_id)
                return
            epoch = run.epoch
            yield f"wait-{len(events(self.stack, self.run_id)):03}"
            self.go_on()
        raise AssertionError("It waits without an end.")

    def _stands_after(self, epoch: int) -> RunRecord:
        def stands() -> RunRecord | None:
            run = row(self.stack, self.run_id)
            return run if run.terminal or (run.status == "waiting" and run.epoch > epoch) else None

        run = eventually(stands, WAIT_SECONDS, f"the next wait of {self.run_id}")
        assert run is not None
        return run


def main() -> None:
    """Write the golden files."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedServices(Path(folder)) as services:
        Path(folder).chmod(0o711)
        migrate(services.database_url)
        env = {"DATABASE_URL": services.database_url, "REDIS_URL": services.redis_url}
        with Stack(env, Path(folder)) as stack:
            stack.start_web()
            stack.start_worker()
            left = Left.begin(stack)
            for name in left.plays_on():
                left.write(name)
            left.write("end")


if __name__ == "__main__":
    main()
