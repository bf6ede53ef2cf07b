"""The command line of the benchmarks: `python -m bench SCENARIO`, which is what `runtail bench SCENARIO` runs.

Responsible for options, taken from the scenarios' fields, and for exit codes. Not responsible for what is measured.
"""

import argparse
import dataclasses
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from app.dev.services import DevError
from bench import report
from bench.processes import BenchError
from bench.scenarios import SCENARIOS
from bench.stage import Stage

HELP = {
    "away_ms": "milliseconds that a client is away at each cut",
    "baseline_windows": "windows of each baseline",
    "baselines": "names with commas between, all, or none",
    "before": "seconds of quiet delivery before the outage",
    "clients": "client processes, or connections that start runs",
    "cuts": "times that a client's connection is cut while it follows a run",
    "decisions": "decisions, one after the other",
    "delta_interval_ms": "milliseconds between the deltas of a run that is stored",
    "deltas": "deltas of a run that is stored",
    "events": "events of the run",
    "event_bytes": "size of an appended event, about",
    "folder": "where peers are installed, each in a folder of its own",
    "idle_seconds": "how long windows are idle before they are weighed",
    "install": "peers that are not there: missing (they are installed) or never",
    "interval_ms": "milliseconds between the events of a run whose client is cut off",
    "joins": "late joiners, one after the other",
    "killed_events": "events of a run whose server is killed",
    "killed_interval_ms": "milliseconds between them",
    "lag_seconds": "STREAM_MAX_LAG_SECONDS of the server",
    "measures": "names with commas between, or all",
    "only": "names of peers with commas between, or all",
    "outage": "seconds between the kill and the new start",
    "pairs": "pairs of the same load, without and with what is to be noticed",
    "patience": "seconds in which a killed server's run may go on",
    "payload_bytes": "size of an event's payload, about",
    "per_run": "deltas a second of each run",
    "posts": "runs to start, one after the other",
    "processes": "web processes",
    "rate": "events a second over all runs",
    "rounds": "workers to kill, or runs whose client is cut off, one after the other",
    "runs": "runs that the windows follow, that stream, that wait, or that do nothing",
    "sample": "share of the events that the feed is to show",
    "seconds": "how long it is measured",
    "settle": "seconds that a server is given before it is weighed",
    "shapes": "names with commas between, or all",
    "share": "of what a run may keep, how much it is to keep",
    "stalled": "windows that never read",
    "stored_runs": "runs whose storage is weighed",
    "streaming": "runs that stream all the time",
    "victims": "runs to cancel, one after the other",
    "warm_up": "how many come before that are not measured",
    "windows": "open windows",
    "writers": "external writers",
}
EXIT_TROUBLE = 2


def main() -> None:
    """Play a scenario; print its table, and write its JSON where asked."""
    options = vars(parser().parse_args())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TROUBLE))  # so that what was started is ended
    name, target = options.pop("scenario"), options.pop("json")
    console = Console()
    try:
        with Stage() as stage:
            result = SCENARIOS[name](**options).run(stage)
            versions = stage.versions()
    except (BenchError, DevError) as error:
        print(f"runtail bench: {error}", file=sys.stderr)
        sys.exit(EXIT_TROUBLE)
    report.show(name, result, console)
    if target:
        report.save(target, report.document(name, options, result, versions))


def parser() -> argparse.ArgumentParser:
    """A sub-command for each scenario, an option for each of its fields."""
    whole = argparse.ArgumentParser(prog="runtail bench", description="Measure Runtail on this machine.")
    scenarios = whole.add_subparsers(dest="scenario", required=True, metavar="SCENARIO")
    for name, kind in SCENARIOS.items():
        what = (kind.__doc__ or "").splitlines()[0]
        one = scenarios.add_parser(name, help=what, description=what)
        fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(kind)  # type: ignore[arg-type]
        for field in fields:
            text = f"{HELP[field.name]} ({field.default})"
            one.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default, help=text)
        one.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    return whole


if __name__ == "__main__":
    main()
