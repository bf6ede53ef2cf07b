"""`python -m workers`: one worker process. Patches first: what is imported before shares one connection."""

from gevent import monkey

monkey.patch_all()

import logging  # noqa: E402
import sys  # noqa: E402

from app.config import Config  # noqa: E402
from app.errors import ConfigError  # noqa: E402
from app.storage.cooperative import make_psycopg_cooperative  # noqa: E402
from workers.process import WorkerProcess  # noqa: E402


def main() -> None:
    """Run a worker with the settings of the environment."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        config = Config.from_env()
    except ConfigError as error:
        sys.exit(error.detail)
    make_psycopg_cooperative()
    WorkerProcess(config).run()


main()
