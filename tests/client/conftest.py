"""The client of tests: of the shared server, closed at the end."""

from collections.abc import Iterator

import pytest

from runtail.client import Runtail
from tests.harness import Stack


@pytest.fixture
def client(live: Stack) -> Iterator[Runtail]:
    """Of the shared server. Its runs ask often whether they were cancelled."""
    with Runtail(live.url, beat_seconds=0.1) as client:
        yield client
