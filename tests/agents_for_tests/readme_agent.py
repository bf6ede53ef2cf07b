"""The agent of the README, as it stands there."""

import re
from pathlib import Path

README = Path(__file__).parent.parent.parent / "README.md"

(code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
exec(compile(code, README, "exec"))
