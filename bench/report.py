"""What a benchmark says: a table on the terminal, and JSON with everything that is needed to judge it.

Responsible for machine, versions, ratios and form. Not responsible for the figures.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from bench.processes import ROOT

PACKAGES = ("flask", "gunicorn", "gevent", "redis", "hiredis", "peewee", "psycopg2-binary", "flask-sse")
SUBJECT = "runtail"
Figures = dict[str, Any]


@dataclass(slots=True)
class Result:
    """Figures by server, name and unit in one (`p99_ms`); what was not installed; what casts doubt on them."""

    servers: dict[str, Figures] = field(default_factory=dict)
    not_installed: list[str] = field(default_factory=list)
    compare: tuple[str, ...] = ()
    """Figures whose ratio to each baseline's is told."""
    doubts: list[str] = field(default_factory=list)
    limits: Mapping[str, float] = field(default_factory=dict)
    """What figures of Runtail may be at most."""

    def missed(self) -> list[str]:
        """The figures that are beyond their limit, or missing."""
        subject = self.servers.get(SUBJECT, {})
        return [name for name, most in self.limits.items() if not subject.get(name, float("inf")) <= most]

    def ratios(self) -> dict[str, dict[str, float]]:
        """Runtail's figure over the baseline's, by baseline and figure."""
        subject = self.servers.get(SUBJECT, {})
        others = {name: figures for name, figures in self.servers.items() if name != SUBJECT}
        return {
            name: {f: round(subject[f] / figures[f], 3) for f in self.compare if subject.get(f) and figures.get(f)}
            for name, figures in others.items()
        }


def document(scenario: str, parameters: Mapping[str, Any], result: Result, versions: Mapping[str, str]) -> Figures:
    """Everything, as JSON is to hold it."""
    return {
        "scenario": scenario,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _machine(),
        "versions": {"python": platform.python_version(), **_packages(), **versions},
        "parameters": dict(parameters),
        "figures": result.servers,
        "ratios": result.ratios(),
        "not_installed": result.not_installed,
        "doubts": result.doubts,
        "limits": dict(result.limits),
        "missed": result.missed(),
    }


def show(scenario: str, result: Result, console: Console) -> None:
    """The table: a row per figure, a column per server, then the ratios and the doubts."""
    names = [*result.servers, *result.not_installed]
    table = Table("figure", *names, title=scenario)
    for figure in dict.fromkeys(figure for figures in result.servers.values() for figure in figures):
        cells = [_cell(result.servers[name].get(figure)) for name in result.servers]
        table.add_row(figure, *cells, *("not installed" for _ in result.not_installed))
    console.print(table)
    for name, ratios in result.ratios().items():
        for figure, ratio in ratios.items():
            console.print(f"{figure}: {ratio} × {name}'s")
    for figure, most in result.limits.items():
        verdict = "[bold]missed[/bold]" if figure in result.missed() else "kept"
        console.print(f"{figure}: at most {_cell(most)}: {verdict}")
    for doubt in result.doubts:
        console.print(f"[bold]Doubtful:[/bold] {doubt}")


def save(path: Path, content: Figures) -> None:
    """Write the JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _machine() -> Figures:
    model = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {"cores": os.cpu_count(), "cpu": model, "memory_gib": memory, "kernel": platform.release()}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _packages() -> dict[str, str]:
    return {d.name.lower(): d.version for d in importlib.metadata.distributions() if d.name.lower() in PACKAGES}


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
