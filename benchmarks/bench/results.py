"""The samples of a run, the machine they come from, and the figures computed from them."""

import math
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
"""What one run of scenarios.py printed."""


class Figure(NamedTuple):
    """One line of the table: how to read it from a row's result."""

    title: str
    key: str
    quantile: float | None = None

    def of(self, row: Row) -> float | None:
        """Its value; None where it was not measured."""
        value = row["result"].get(self.key)
        if value is None or value == []:
            return None
        if isinstance(value, list):
            return quantile(value, 0.5 if self.quantile is None else self.quantile)
        return float(value)


FIGURES = (
    Figure("cold start ms", "cold_start_ms"),
    Figure("cold start CPU s", "cold_start_cpu_s"),
    Figure("endpoint changed ms p50", "endpoint_changed_ms", 0.5),
    Figure("endpoint changed ms p99", "endpoint_changed_ms", 0.99),
    Figure("CPU ms per change", "endpoint_changed_cpu_ms"),
    Figure("service added ms", "service_added_ms"),
    Figure("service deleted ms", "service_deleted_ms"),
    Figure("rolling update ms", "rolling_update_ms"),
    Figure("churn ms p50", "churn_ms", 0.5),
    Figure("churn ms p90", "churn_ms", 0.9),
    Figure("churn ms p99", "churn_ms", 0.99),
    Figure("churn backlog ms", "churn_backlog_ms"),
    Figure("churn CPU s", "churn_cpu_s"),
    Figure("restart ms", "restart_ms"),
    Figure("idle % of a core", "idle_cpu_percent"),
    Figure("memory MB", "memory_mb"),
    Figure("with children MB", "memory_with_children_mb"),
    Figure("connect us p50, first", "connect_first_us", 0.5),
    Figure("connect us p50, last", "connect_last_us", 0.5),
    Figure("connect us p99, last", "connect_last_us", 0.99),
    Figure("connections/s, last", "connections_per_second_last"),
)
"""What the table shows; less is better, but for the last one."""

MORE_IS_BETTER = frozenset({"connections_per_second_first", "connections_per_second_last"})


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that so large a share of all is not above."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def ratio(figure: Figure, own: Row, peer: Row) -> float | None:
    """Return how many times better kproxy is; None where either was not measured or is too small to tell."""
    mine, other = figure.of(own), figure.of(peer)
    if not mine or not other:
        return None
    return mine / other if figure.key in MORE_IS_BETTER else other / mine


def pairs(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Each row of a peer with kproxy's row of the same mode and size."""
    found = list(rows)
    own = {_case(row): row for row in found if row["contender"] == "kproxy"}
    return [(own[_case(row)], row) for row in found if row["contender"] != "kproxy" and _case(row) in own]


def _case(row: Row) -> tuple[str, int, int]:
    return row["mode"], row["plan"]["services"], row["plan"]["endpoints"]


def machine() -> dict[str, Any]:
    """Return the properties of the machine on which the figures depend."""
    memory = Path("/proc/meminfo").read_text().split()[1]
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(int(memory) / 2**20, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }
