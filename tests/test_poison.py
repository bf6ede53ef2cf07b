"""What an agent records and cannot be kept ends its run at once, alone, with a sentence, and repeats no effect."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.errors import Refused
from app.storage.coalescing import Coalescer
from runtail.tools import ToolError
from tests.agents_for_tests.poison_agents import WAYS
from tests.conftest import StackMaker, execute
from tests.external_writer import ExternalWriter
from tests.harness import Process, Stack, eventually, problem
from tests.stored import begin, ended, payloads, reach, row

CLEANED = list(WAYS)[: list(WAYS).index("random_is_fine") + 1]
REFUSED = list(WAYS)[len(CLEANED) :]
# Refuses what names a SQLSTATE, as in `raise 22003` and `custom.raise_22003`: `once …` the first time only.
TRIGGERS = """
CREATE TABLE refusals (named text);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE named text := CASE TG_TABLE_NAME WHEN 'run_ops' THEN to_jsonb(NEW) ->> 'name'
                      WHEN 'run_events' THEN to_jsonb(NEW) ->> 'type' ELSE to_jsonb(NEW) ->> 'label' END;
DECLARE state text := substring(named from '(?:raise|while)[ _]([0-9a-z]{5})$');
BEGIN
  IF named = 'refuse me' THEN RAISE EXCEPTION 'no' USING ERRCODE = '23514'; END IF;
  IF state IS NULL OR (named LIKE '%while%' AND EXISTS (SELECT FROM refusals WHERE refusals.named = state)) THEN
    RETURN NEW;
  END IF;
  RAISE EXCEPTION 'a trigger says no to hunter2' USING ERRCODE = upper(state);
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON run_ops FOR EACH ROW EXECUTE FUNCTION refuse();
CREATE TRIGGER refuse BEFORE INSERT ON run_events FOR EACH ROW EXECUTE FUNCTION refuse();
CREATE TRIGGER refuse BEFORE INSERT ON approvals FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    server = module_stack()
    execute(server.env["DATABASE_URL"], TRIGGERS)
    server.start_web()
    return server


@pytest.fixture(scope="module")
def worker(server: Stack) -> Process:
    return server.start_worker()


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    return tmp_path / "calls"


def _effects(calls: Path) -> int:
    return len(calls.read_text().splitlines())


@pytest.mark.usefixtures("worker")
class TestAtTheCall:
    @pytest.mark.parametrize("way", CLEANED)
    def test_what_can_be_cleaned_is_and_the_run_completes(self, server: Stack, calls: Path, way: str) -> None:
        run = ended(server, begin(server, "gives", way=way, calls=str(calls)))
        assert run.attempt == 1
        assert _effects(calls) == 1

    @pytest.mark.parametrize("way", REFUSED)
    def test_what_cannot_be_kept_is_refused_with_a_sentence_that_names_the_call(
        self, server: Stack, calls: Path, way: str
    ) -> None:
        run = ended(server, begin(server, "gives", way=way, calls=str(calls)), "failed")
        assert run.error is not None
        assert run.error["code"] == "invalid_call", run.error
        assert run.error["message"].startswith(("run.", "message.", "progress", "Call 2, ")), run.error
        assert len(run.error["message"]) <= 1_000
        assert run.attempt == 1
        assert _effects(calls) == 1


@pytest.mark.usefixtures("worker")
class TestInTheDatabase:
    @pytest.mark.parametrize(
        ("way", "named", "state"),
        [
            ("raise 22003", "Call 1, tool 'raise 22003'", "22003"),
            ("raise 23514", "Call 1, tool 'raise 23514'", "23514"),
            ("raise 54000", "Call 1, tool 'raise 54000'", "54000"),
            ("custom.raise_22p05", "Call 2, custom.raise_22p05", "22P05"),
            ("custom.raise_23505", "Call 2, custom.raise_23505", "23505"),
        ],
    )
    def test_what_postgres_refuses_for_good_fails_that_run_at_once_and_no_other(
        self, server: Stack, tmp_path: Path, way: str, named: str, state: str
    ) -> None:
        calls, gate = tmp_path / "calls", tmp_path / "gate"
        neighbours = [begin(server, "steady", count=10, interval=0.05, gate=str(gate)) for _ in range(3)]
        for neighbour in neighbours:
            reach(server, neighbour, "custom.tick", times=3)
        poisoned = begin(server, "records", way=way, calls=str(calls))
        run = ended(server, poisoned, "failed")
        message = f"{named} cannot be stored. Postgres refuses a value for good (SQLSTATE {state})."
        assert run.error == {"code": "invalid_call", "message": message}
        assert (run.attempt, _effects(calls)) == (1, 1)
        assert not payloads(server, poisoned, "run.step")
        gate.touch()
        for neighbour in neighbours:
            assert ended(server, neighbour).attempt == 1
            assert not payloads(server, neighbour, "run.step")

    def test_a_question_that_postgres_refuses_is_one_of_them(self, server: Stack, calls: Path) -> None:
        run = ended(server, begin(server, "records", way="approve", calls=str(calls)), "failed")
        assert run.error is not None
        assert run.error["message"].startswith("Call 1, approv")

    @pytest.mark.parametrize("state", ["P0001", "XX000", "42501", "53100", "40001", "55P03", "57014", "58030", "25006"])
    def test_whatever_else_it_says_the_run_goes_on_once_it_says_no_more(
        self, server: Stack, tmp_path: Path, state: str
    ) -> None:
        calls, gate = tmp_path / "calls", tmp_path / "gate"
        neighbour = begin(server, "steady", count=10, interval=0.05, gate=str(gate))
        reach(server, neighbour, "custom.tick", times=3)
        run_id = begin(server, "records", way=f"while {state.lower()}", calls=str(calls))
        eventually(lambda: calls.exists())
        if state != "25006":  # which is the whole server's
            before = len(payloads(server, neighbour, "custom.tick"))
            reach(server, neighbour, "custom.tick", times=before + 20)
        assert row(server, run_id).status == "running"
        execute(server.env["DATABASE_URL"], f"INSERT INTO refusals VALUES ('{state.lower()}')")
        run = ended(server, run_id)
        assert (run.attempt, _effects(calls)) == (1, 1)
        assert not payloads(server, run_id, "run.step")
        gate.touch()
        assert ended(server, neighbour).attempt == 1


@pytest.mark.parametrize("way", ["raise 22003", "custom.raise_23505"])
def test_it_is_the_same_in_a_process_of_its_own(server: Stack, calls: Path, way: str) -> None:
    isolated = server.start_worker("--isolated")
    run = ended(server, server.start("records_isolated", {"way": way, "calls": str(calls)}), "failed")
    assert run.error is not None
    assert run.error["code"] == "invalid_call"
    assert (run.attempt, _effects(calls)) == (1, 1)
    assert isolated.stop() == 0


def test_a_writers_batch_that_postgres_refuses_takes_no_other_writers_with_it(server: Stack) -> None:
    writers = [ExternalWriter.start(server.http) for _ in range(8)]
    types = [
        "custom.raise_22003" if n % 4 == 1 else "custom.raise_p0001" if n == 2 else "custom.tick" for n in range(8)
    ]
    with ThreadPoolExecutor(len(writers)) as pool:
        for _ in range(5):  # at the same moment, so that they share transactions
            answers = list(pool.map(lambda writer, type: writer.append((type, {})), writers, types))
            for writer, type, answer in zip(writers, types, answers, strict=True):
                if type == "custom.tick":
                    assert answer.status_code == 200, answer.text
                    continue
                writer.seq -= 1
                code = (422, "refused_value") if type == "custom.raise_22003" else (500, "store_failed")
                assert "hunter2" not in str(problem(answer, *code))
    for writer in writers:
        assert writer.complete().json()["status"] == "completed"


def test_the_detail_of_a_tools_failure_is_cut_where_the_documentation_says() -> None:
    failed = ToolError("long", "x" * 20_000)
    assert str(failed) == failed.detail == ToolError.of(failed.public()).detail == "x" * 10_000


def test_of_many_questions_only_those_that_are_refused_get_no_answer() -> None:
    rounds: list[int] = []
    begun = threading.Event()

    def answer(questions: Sequence[int]) -> list[int]:
        rounds.append(len(questions))
        if not begun.is_set():
            begun.wait(10)  # meanwhile the others queue up, to go along together
        if any(question % 10 == 7 for question in questions):
            raise Refused("There is a seven in it.")
        return [2 * question for question in questions]

    together = Coalescer(answer, 100)

    def ask(question: int) -> int | None:
        try:
            return together.ask(question)
        except Refused:
            return None

    with ThreadPoolExecutor(31) as pool:
        asked = [pool.submit(ask, question) for question in range(31)]
        eventually(lambda: len(together._waiting) == 30)
        begun.set()
        answers = [future.result() for future in asked]
    assert answers == [None if n % 10 == 7 else 2 * n for n in range(31)]
    assert max(rounds) == 30
    assert len(rounds) < 30


@pytest.mark.usefixtures("worker")
def test_a_run_whose_end_postgres_refuses_ends_all_the_same(server: Stack) -> None:
    refuse = """
    CREATE FUNCTION refuse_end() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      RAISE EXCEPTION 'no hunter2' USING ERRCODE = '22003'; END $$;
    CREATE TRIGGER refuse_end BEFORE UPDATE ON runs FOR EACH ROW WHEN (NEW.output::text LIKE '%refuse me%')
    EXECUTE FUNCTION refuse_end();
    """
    execute(server.env["DATABASE_URL"], refuse)
    written = ExternalWriter.start(server.http).complete(output={"text": "refuse me"}).json()
    message = "The output cannot be stored. Postgres refuses a value for good (SQLSTATE 22003)."
    assert (written["status"], written["error"]) == ("failed", {"code": "invalid_output", "message": message})
    run_id = server.start("emit", {"count": 1, "text": "refuse me", "interval_ms": 0})
    run = ended(server, run_id, "failed")
    message = "The run cannot be stored. Postgres refuses a value for good (SQLSTATE 22003)."
    assert (run.attempt, run.error) == (1, {"code": "invalid_call", "message": message})
