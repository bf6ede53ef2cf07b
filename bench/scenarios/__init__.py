"""The scenarios by name. The fields of each are its options; `run` plays it on a stage and returns a `Result`."""

from typing import Protocol

from bench.report import Result
from bench.scenarios.approval import Approval
from bench.scenarios.cancel import Cancel
from bench.scenarios.crowd import Crowd
from bench.scenarios.delivery import Fanout, Wide
from bench.scenarios.feed import FeedBeside
from bench.scenarios.first_event import FirstEvent
from bench.scenarios.load_client import LoadClient
from bench.scenarios.memory import Memory
from bench.scenarios.outage import RedisRestart, Sigterm, Storm
from bench.scenarios.peers import Peers
from bench.scenarios.replay import Replay
from bench.scenarios.short_runs import ShortRuns
from bench.scenarios.slow import Slow
from bench.scenarios.standstill import Standstill
from bench.scenarios.streaming import Streaming
from bench.scenarios.takeover import Takeover
from bench.scenarios.waiting import Waiting
from bench.scenarios.websockets import WebSockets
from bench.scenarios.writers import Writers
from bench.stage import Stage


class Scenario(Protocol):
    """A frozen dataclass of options."""

    def run(self, stage: Stage) -> Result:
        """Play it."""


SCENARIOS: dict[str, type[Scenario]] = {
    "fanout": Fanout,
    "wide": Wide,
    "replay": Replay,
    "storm": Storm,
    "first-event": FirstEvent,
    "memory": Memory,
    "crowd": Crowd,
    "slow": Slow,
    "redis-restart": RedisRestart,
    "sigterm": Sigterm,
    "load-client": LoadClient,
    "runs": Streaming,
    "short-runs": ShortRuns,
    "cancel": Cancel,
    "approval": Approval,
    "waiting": Waiting,
    "takeover": Takeover,
    "writers": Writers,
    "standstill": Standstill,
    "websockets": WebSockets,
    "feed": FeedBeside,
    "peers": Peers,
}
