"""A look at what has come on an idle connection. It takes nothing, and never waits."""

import socket
from _socket import socket as NativeSocket  # gevent has not patched it
from socket import AF_INET, MSG_DONTWAIT, MSG_PEEK, SOCK_STREAM

_AT_ONCE = SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)
"""Where somebody has called `socket.setdefaulttimeout`, any other new socket would wait for so long."""


def peek(descriptor: int) -> bytes | None:
    """The first byte; empty: the connection has ended. None: nothing has come, which is what an idle one should say."""
    try:
        borrowed = NativeSocket(AF_INET, _AT_ONCE, 0, descriptor)  # all of them said: else it would ask the system
    except (OSError, ValueError):
        return b""
    try:
        return borrowed.recv(1, MSG_PEEK | MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        return b""
    finally:
        borrowed.detach()
