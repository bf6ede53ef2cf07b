"""A look at what has come on an idle connection. It takes nothing, waits for nothing, and costs one system call."""

from _socket import socket as NativeSocket  # gevent has not patched it: it never waits here
from socket import MSG_DONTWAIT, MSG_PEEK


def peek(descriptor: int) -> bytes | None:
    """The first byte; empty: the connection has ended. None: nothing has come, which is what an idle one should say."""
    borrowed = NativeSocket(fileno=descriptor)
    try:
        return borrowed.recv(1, MSG_PEEK | MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        return b""
    finally:
        borrowed.detach()
