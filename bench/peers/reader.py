"""A client that follows one run and comes back, as its server wants it, whenever its connection is gone.

Responsible for coming back and for what was seen. Not responsible for why the connection goes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.peers.account import Account
from bench.peers.peer import Peer, Run, Work
from bench.peers.wire import Refused, Stream

RETRY_SECONDS = 0.1
REFUSALS = 50
"""After so many refusals in a row nothing is expected any more."""
GONE = 204
"""The answer to a client for which there is nothing any more."""


@dataclass(slots=True)
class Reader:
    """What one client has of a run."""

    peer: Peer
    run: Run
    account: Account
    deadline: float
    """By `time.monotonic`: nothing is waited for any more."""
    ended: bool = False
    refused: int = 0
    """The status of the last answer that was no stream; 0: there was none."""
    arrivals: list[float] = field(default_factory=list)
    """When a delta came that was further than all before, by `time.monotonic`."""

    @classmethod
    def started(cls, peer: Peer, work: Work, seconds: float) -> tuple["Reader", Stream]:
        """A reader of a new run, who has so many seconds, and its first stream."""
        run, stream = peer.start(work)
        return cls(peer, run, Account(work.count), time.monotonic() + seconds), stream

    def read(self, stream: Stream, enough: Callable[[Account], bool] = lambda _: False) -> None:
        """Read until there is enough, the run has ended, or the stream is gone.

        :raises Refused: it was no stream.
        """
        for frame in stream.frames(self.deadline):
            self.refused = 0
            self.peer.learn(self.run, frame)
            if self.account.see(self.peer.deltas(frame)):
                self.arrivals.append(frame.at)
            self.ended = self.ended or self.peer.is_end(frame)
            if self.ended or enough(self.account):
                return

    def come_back(self, enough: Callable[[Account], bool] = lambda _: False) -> None:
        """Come back, as often as it takes, until there is enough, the run has ended, or time is up."""
        refusals = 0
        while time.monotonic() < self.deadline and not self.ended and not enough(self.account) and refusals < REFUSALS:
            try:
                with self.peer.open(self.peer.back(self.run)) as stream:
                    self.read(stream, enough)
                refusals = 0
            except Refused as error:
                self.refused = error.status
                refusals += 1
                if error.status == GONE:
                    return
            except OSError:
                pass  # it is not up again
            if not self.ended and not enough(self.account):
                time.sleep(RETRY_SECONDS)
