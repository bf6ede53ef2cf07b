"""The server does what its OpenAPI document says: schemathesis makes requests of it, and follows its links."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.storage.run_store import AgentRecord, Principal
from tests.conftest import StackMaker

HERE = Path(__file__).parent
MOST_SECONDS = 120
BUDGET_SECONDS = 40
"""For generated requests; the phases before take what they take."""
LEFT_OUT = "positive_data_acceptance,use_after_free,ensure_resource_availability"
"""A schema cannot say all that is refused (two names for one run, integers beyond 2^53). DELETE cancels a run, which is
still there after it, and one that was erased is not, which schemathesis does not know of that call."""
ROOT = Principal("acme", "root", admin=True, writer=True)


@pytest.mark.timeout(MOST_SECONDS + 60)
def test_the_server_does_what_its_document_says(stack: StackMaker, tmp_path: Path) -> None:
    server = stack(RUNTAIL_DEV="", STREAM_MAX_SECONDS="1", STREAM_MAX_PER_USER="0", STREAM_MAX_PER_ADDRESS="0")
    server.services.registry.put_agent(AgentRecord("any", {"type": "object"}, "gevent", "1"))
    server.start_web()
    key = server.services.registry.create_key(ROOT)
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {key}", "--request-timeout", "15"]
    command += ["--max-examples", "20", "--max-time", str(BUDGET_SECONDS), "--seed", "1"]
    command += ["--exclude-checks", LEFT_OUT, "--no-color", "--generation-database", "none"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "serializers", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-30_000:] + done.stderr[-3_000:]
    covered = re.search(r"API Links: +(\d+) covered", done.stdout)
    assert covered is not None
    assert int(covered[1]) >= 5, done.stdout
