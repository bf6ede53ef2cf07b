"""`python -m workers`: one worker process. Patches first: what is imported before shares one connection.

With `--isolated` it executes the agents that get a process for each run, and nothing is patched.
"""

import sys

from workers.coroner import appoint
from workers.first import prepare

ISOLATED = "--isolated" in sys.argv[1:]

if not ISOLATED:
    CORONER = appoint()
    prepare()
    from gevent import monkey

    monkey.patch_all()

import logging  # noqa: E402

from app.config import Config  # noqa: E402
from app.errors import ConfigError  # noqa: E402
from app.storage.cooperative import make_psycopg_cooperative  # noqa: E402
from workers.isolated.worker import IsolatedProcess  # noqa: E402
from workers.process import WorkerProcess  # noqa: E402


def main() -> None:
    """Run a worker with the settings of the environment."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        config = Config.from_env()
    except ConfigError as error:
        sys.exit(error.detail)
    if ISOLATED:
        IsolatedProcess(config).run()
    else:
        make_psycopg_cooperative()
        WorkerProcess(config, CORONER).run()


main()
