"""The worker process: RQ over gevent, the executor of agents, and the emitter of their events."""
