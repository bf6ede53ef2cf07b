"""`runtail dev` as it is, but for one setting: its Redis makes every append durable before it answers.

That is what a deployment sets that wants to lose nothing even when Redis and the writer die together.
"""

import sys

from app.cli.main import main
from app.dev.services import redis_server

if __name__ == "__main__":
    redis_server.SETTINGS["appendfsync"] = "always"
    sys.exit(main())
