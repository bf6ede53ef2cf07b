"""Quantiles of what was measured one by one."""

from collections.abc import Iterable

SHOWN = (50, 95, 99)


def quantiles(name: str, times_ms: Iterable[float]) -> dict[str, float]:
    """`{name}_p50_ms` and so on, and `{name}_max_ms`, each one of the values; nothing where there are none."""
    ordered = sorted(times_ms)
    if not ordered:
        return {}
    found = {f"{name}_p{q}_ms": ordered[min(len(ordered) - 1, len(ordered) * q // 100)] for q in SHOWN}
    return {**found, f"{name}_max_ms": ordered[-1]}
