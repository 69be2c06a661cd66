"""The results as tables on a terminal: ratios first, figures second."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.bench.results import FIGURES, Row, pairs, ratio


def show(rows: Sequence[Row], console: Console) -> None:
    """Print what was measured and what went wrong."""
    compared = pairs(rows)
    if compared:
        table = Table(title="how many times better kproxy is")
        table.add_column("")
        for ours, theirs in compared:
            table.add_column(f"{_size(ours)}\n{ours['mode']}\nvs {theirs['contender']}", justify="right")
        for figure in FIGURES:
            ratios = [ratio(figure, ours, theirs) for ours, theirs in compared]
            if any(value is not None for value in ratios):
                table.add_row(figure.title, *(_number(value) for value in ratios))
        console.print(table)
    table = Table(title="as measured")
    table.add_column("")
    for row in rows:
        table.add_column(f"{_size(row)}\n{row['mode']}\n{row['contender']}", justify="right")
    for figure in FIGURES:
        table.add_row(figure.title, *(_number(figure.of(row)) for row in rows))
    console.print(table)
    for row in rows:
        if "gave_up" in row:
            console.print(f"[bold red]{row['contender']} {row['mode']} {_size(row)}:[/] {row['gave_up']}")


def markdown(rows: Sequence[Row]) -> str:
    """The figures as a table for a README: a column for each contender and size."""
    heads = [f"{row['contender']} {row['mode']}, {_size(row)}" for row in rows]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(rows) + 1) + "|"]
    for figure in FIGURES:
        values = [_number(figure.of(row)) for row in rows]
        lines.append(f"| {figure.title} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def _size(row: Row) -> str:
    return f"{row['plan']['services']} x {row['plan']['endpoints']}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"
