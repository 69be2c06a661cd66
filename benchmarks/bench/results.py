"""The samples of a run, and the figures computed from them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]
"""What one run of scenarios.py printed."""


class Figure(NamedTuple):
    """One line of the table: how to read it from a row's result.

    `floor` is what cannot be told from less, in the figure's unit: a comparison takes smaller values for it.
    """

    title: str
    key: str
    quantile: float | None = None
    floor: float = 0.0

    def of(self, row: Row) -> float | None:
        """Its value, from samples or from quantiles of them; None where it was not measured."""
        value = row["result"].get(self.key)
        if value is None or value == []:
            return None
        share = 0.5 if self.quantile is None else self.quantile
        if isinstance(value, dict):
            return float(value[f"p{share * 100:g}"])
        return quantile(value, share) if isinstance(value, list) else float(value)

    def samples(self, row: Row) -> int:
        """Return from how many samples the value comes; a total is one."""
        value = row["result"].get(self.key)
        if isinstance(value, dict):
            return int(value["samples"])
        return len(value) if isinstance(value, list) else 1


FIGURES = (
    Figure("cold start ms", "cold_start_ms", floor=10),
    Figure("cold start CPU s", "cold_start_cpu_s", floor=0.05),
    Figure("endpoint changed ms p50", "endpoint_changed_ms", 0.5, floor=1),
    Figure("endpoint changed ms p99", "endpoint_changed_ms", 0.99, floor=1),
    Figure("CPU ms per change", "endpoint_changed_cpu_ms", floor=2),
    Figure("service added ms", "service_added_ms", floor=1),
    Figure("service deleted ms", "service_deleted_ms", floor=1),
    Figure("rolling update ms", "rolling_update_ms", floor=1),
    Figure("churn ms p50", "churn_ms", 0.5, floor=1),
    Figure("churn ms p90", "churn_ms", 0.9, floor=1),
    Figure("churn ms p99", "churn_ms", 0.99, floor=1),
    Figure("churn backlog ms", "churn_backlog_ms", floor=100),
    Figure("churn CPU s", "churn_cpu_s", floor=0.05),
    Figure("churn % of a core", "churn_cpu_percent", floor=1),
    Figure("restart ms", "restart_ms", floor=10),
    Figure("restart CPU s", "restart_cpu_s", floor=0.05),
    Figure("idle % of a core", "idle_cpu_percent", floor=1),
    Figure("memory MB", "memory_mb", floor=1),
    Figure("memory at rest MB", "memory_at_rest_mb", floor=1),
    Figure("with children MB", "memory_with_children_mb", floor=1),
    Figure("connect us p50, first", "connect_first_us", 0.5, floor=5),
    Figure("connect us p50, last", "connect_last_us", 0.5, floor=5),
    Figure("connect us p99, last", "connect_last_us", 0.99, floor=5),
    Figure("connections/s, last", "connections_per_second_last"),
)
"""What the table shows of every contender; less is better, but for the last one."""

OWN_FIGURES = (
    Figure("kproxy --help ms", "help_ms", floor=10),
    Figure("decode ms", "decode_ms", floor=1),
    Figure("plan ms", "plan_ms", floor=1),
    Figure("render ms", "render_ms", floor=1),
    Figure("write ms", "write_ms", floor=1),
)
"""What is measured of kproxy only: its start, and the parts of a first sync one by one, in one process."""

MORE_IS_BETTER = frozenset({"connections_per_second_first", "connections_per_second_last"})


def measured(rows: Iterable[Row]) -> list[Figure]:
    """Return the figures of a table of these rows."""
    found = list(rows)
    own = (figure for figure in OWN_FIGURES if any(figure.of(row) is not None for row in found))
    return [*FIGURES, *own]


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
    own = {case(row): row for row in found if row["contender"] == "kproxy"}
    return [(own[case(row)], row) for row in found if row["contender"] != "kproxy" and case(row) in own]


def case(row: Row) -> tuple[str, int, int]:
    """Return the mode and the size of a row."""
    return row["mode"], row["plan"]["services"], row["plan"]["endpoints"]
