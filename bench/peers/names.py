"""The servers by name; Runtail comes first."""

from bench.peers.agentos import AgentOS
from bench.peers.ai_sdk import AiSdk
from bench.peers.langgraph_dev import LangGraphDev
from bench.peers.nchan import NchanServer
from bench.peers.peer import Peer
from bench.peers.rq_flask_sse import RqFlaskSse
from bench.peers.runtail import Runtail, RuntailText

KINDS: tuple[type[Peer], ...] = (Runtail, RuntailText, RqFlaskSse, LangGraphDev, AgentOS, AiSdk, NchanServer)
PEERS = {kind.name: kind for kind in KINDS}
