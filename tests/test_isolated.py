"""isolation="process": agents that compute, block or die have a process each, and everything else holds for them too."""

from typing import Any

import pytest

from tests.conftest import StackMaker
from tests.harness import Process, Stack, eventually
from tests.test_worker import check_log

Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    server = module_stack()
    server.start_web()
    server.start_worker()
    server.isolated = server.start_worker("--isolated")  # type: ignore[attr-defined]
    return server


def _completed(server: Stack, run_id: str) -> Any:
    run, found = server.ended(run_id), server.events(run_id)
    check_log(run, found)
    assert run["status"] == "completed", run["error"]
    return run["output"]


def test_a_run_has_a_process_of_its_own_and_streams_from_it(server: Stack) -> None:
    run_id = server.start("isolated_words", {"count": 3})
    assert _completed(server, run_id) == "word0 word1 word2 "


def test_every_kind_of_call_works(server: Stack) -> None:
    output = _completed(server, server.start("isolated_everything", {}))
    assert output == {"results": ["a", "b"], "side_by_side": True, "echoed": "meow"}
