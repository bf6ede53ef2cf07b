"""`make test` on a bare machine, as an ordinary user."""

import re
import subprocess

from tests.fresh.conftest import Machine

SUITE_SECONDS = 2400


def test_the_suite_passes_and_says_what_it_left_out(machine: Machine) -> None:
    command = machine.command("env", "--unset=CI", "make", "test", "ARGS=-rs")
    done = subprocess.run(command, capture_output=True, text=True, timeout=SUITE_SECONDS)
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    reasons = re.findall(r"^SKIPPED \[\d+\] \S+: (.*)$", done.stdout, re.MULTILINE)
    assert all(reason.endswith(".") for reason in reasons), "a sentence for each"
