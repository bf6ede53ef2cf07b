"""A real nginx. Where there is none these tests are skipped, except in CI, where they fail."""

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import Process, Stack, eventually, free_port
from tests.programs import needed
from tests.test_docs import OPERATIONS

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
READ_TIMEOUT_SECONDS = 2
"""As nginx' own 60, but so short that a test can wait for it."""

CONFIGURATION = """
daemon off;
master_process off;  # one process, of the user who runs the tests
pid nginx.pid;
events {{}}
http {{
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  proxy_read_timeout {read_timeout}s;
  {servers}
}}
"""
BARE = """
server {
  listen 80;
  location / {
    proxy_http_version 1.0;
    proxy_pass http://127.0.0.1:8000;
  }
}
"""
"""As most nginx versions come: HTTP/1.0 to the server, buffering on, no header added."""


@dataclass(frozen=True, slots=True)
class Nginx:
    """An nginx in front of a stack."""

    port: int
    stack: Stack

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


NginxMaker = Callable[[Stack, str], Nginx]


def documented() -> str:
    """The sample of the operations guide."""
    section = OPERATIONS.partition("\n## Behind nginx\n")[2]
    found = re.search(r"```nginx\n(.*?)```", section, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="session")
def binary() -> str:
    """The nginx on PATH, or where systems hide it from users."""
    return needed("nginx", PATH)


@pytest.fixture(scope="module")
def nginx(binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NginxMaker]:
    """Starts nginx in front of a stack, with the servers of that configuration."""
    with ExitStack() as opened:
        yield lambda stack, servers: opened.enter_context(
            _started(binary, stack, servers, tmp_path_factory.mktemp("nginx"))
        )


@contextmanager
def _started(binary: str, stack: Stack, servers: str, folder: Path) -> Iterator[Nginx]:
    port = free_port()
    servers = servers.replace("listen 80;", f"listen 127.0.0.1:{port};").replace(
        "127.0.0.1:8000", f"127.0.0.1:{stack.port}"
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(servers=servers, read_timeout=READ_TIMEOUT_SECONDS))
    process = Process("nginx", [binary, "-p", str(folder), "-c", str(configuration), "-e", "stderr"], {}, folder)

    def listens() -> bool:
        assert process.popen.poll() is None, process.log.read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    eventually(listens, what="nginx")
    yield Nginx(port, stack)
    process.stop()
