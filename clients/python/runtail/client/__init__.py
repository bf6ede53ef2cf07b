"""The client of a Runtail server: follow runs, and write runs from any Python process.

client = Runtail("https://runs.example.com", KEY)
with client.run(user="alice", input={"month": "May"}) as run:
    rows = run.tool("query", query, "May", label="Reading the books")
    run.output = run.stream(ask_model(rows))
"""

from runtail.client.block import RunBlock
from runtail.client.external_run import ExternalRun
from runtail.client.server import Opened, Runtail

__all__ = ["ExternalRun", "Opened", "RunBlock", "Runtail"]
