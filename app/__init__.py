"""The web side of the server.

The SDK, `runtail`, is a distribution of its own. A server that runs from a checkout, as on Heroku, finds it there.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

_IN_CHECKOUT = Path(__file__).parents[1] / "clients" / "python"
_installed = find_spec("runtail")
if (_installed is None or _installed.origin is None) and _IN_CHECKOUT.is_dir():  # without origin: some empty folder
    sys.path.append(str(_IN_CHECKOUT))
