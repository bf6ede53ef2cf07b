"""The server does what its OpenAPI document says: schemathesis makes requests of it, and follows its links."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app.storage.run_store import AgentRecord, Principal
from tests.conftest import StackMaker

HERE = Path(__file__).parent
MOST_SECONDS = 120
DATA = ["--phases", "examples,coverage,fuzzing", "--max-time", "45"]
LINKS = ["--phases", "stateful"]
SEED = os.environ.get("RUNTAIL_CONTRACT_SEED", "1")
ROOT = Principal("acme", "root", admin=True, writer=True)
COUNTING = {"type": "object", "properties": {"n": {"type": "integer"}}}
"""What an agent takes that no document can say of `POST /runs`."""


@pytest.mark.timeout(MOST_SECONDS + 60)
@pytest.mark.parametrize("phases", [DATA, LINKS], ids=["data", "links"])
def test_the_server_does_what_its_document_says(stack: StackMaker, tmp_path: Path, phases: list[str]) -> None:
    server = stack(RUNTAIL_DEV="", STREAM_MAX_SECONDS="1", STREAM_MAX_PER_USER="0", STREAM_MAX_PER_ADDRESS="0")
    server.services.registry.put_agent(AgentRecord("counting", COUNTING, "gevent", "1"))
    server.start_web()
    key = server.services.registry.create_key(ROOT)
    document = httpx.get(f"{server.url}/openapi.json", headers={"Authorization": f"Bearer {key}"})
    (tmp_path / "openapi.json").write_text(document.text)
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", HERE / "schemathesis.toml"]
    command += ["run", "openapi.json", "--url", server.url, "--no-color"]
    command += [*phases, "--seed", SEED]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "RUNTAIL_KEY": key, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-30_000:] + done.stderr[-3_000:]
