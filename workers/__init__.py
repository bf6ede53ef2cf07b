"""The worker process: RQ over gevent, the executor of agents, and the flusher of their events."""

import app  # noqa: F401  # finds the SDK
