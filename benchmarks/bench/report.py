"""The results as tables on a terminal: ratios first, figures second."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.bench.results import FIGURES, Figure, Row, measured, pairs, ratio


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the results and the failures."""
    compared = pairs(rows)
    if compared:
        table = Table(title="how many times better kproxy is")
        table.add_column("")
        for own, other in compared:
            table.add_column(f"{size_of(own)}\n{own['mode']}\nvs {other['contender']}", justify="right")
        for figure in FIGURES:
            ratios = [ratio(figure, own, other) for own, other in compared]
            if any(value is not None for value in ratios):
                table.add_row(figure.title, *(number(value) for value in ratios))
        console.print(table)
    table = Table(title="as measured")
    table.add_column("")
    for row in rows:
        table.add_column(f"{size_of(row)}\n{row['mode']}\n{row['contender']}", justify="right")
    for figure in measured(rows):
        table.add_row(figure.title, *(number(figure.of(row)) for row in rows))
    console.print(table)
    for row in rows:
        if "gave_up" in row:
            console.print(f"[bold red]{row['contender']} {row['mode']} {size_of(row)}:[/] {row['gave_up']}")


def markdown(rows: Sequence[Row]) -> str:
    """Tables for a README: how many times better kproxy is than each peer, then the figures of each row."""
    compared = pairs(rows)
    parts = []
    if compared:
        heads = [f"{own['mode']}, {size_of(own)}, vs {other['contender']}" for own, other in compared]
        ratios = [[ratio(figure, *pair) for pair in compared] for figure in FIGURES]
        parts.append(_markdown("times better", heads, FIGURES, ratios))
    heads = [f"{row['contender']} {row['mode']}, {size_of(row)}" for row in rows]
    figures = measured(rows)
    parts.append(_markdown("", heads, figures, [[figure.of(row) for row in rows] for figure in figures]))
    given_up = [
        f"{row['contender']} {row['mode']}, {size_of(row)}: {_why(row)}\n" for row in rows if "gave_up" in row
    ]
    return "\n".join([*parts, *given_up])


def _markdown(
    title: str, heads: Sequence[str], figures: Sequence[Figure], values: Sequence[Sequence[float | None]]
) -> str:
    lines = [
        f"| {title} | ".replace("|  |", "| |") + " | ".join(heads) + " |",
        "|---" * (len(heads) + 1) + "|",
    ]
    lines += [
        f"| {figure.title} | " + " | ".join(map(number, line)) + " |"
        for figure, line in zip(figures, values, strict=True)
    ]
    return "\n".join(lines) + "\n"


def _why(row: Row) -> str:
    return str(row["gave_up"]).splitlines()[0]


def size_of(row: Row) -> str:
    """Return services x endpoints."""
    return f"{row['plan']['services']} x {row['plan']['endpoints']}"


def number(value: float | None) -> str:
    """Print a figure with three digits; a dash where there is none."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"
